"""Gather what scoring needs into one verified, immutable bundle, and say which bundle is in use.

    allmrec bundle build --config jobs/configs/demo.yaml
    allmrec bundle refresh --config jobs/configs/demo.yaml
    allmrec bundle promote --config jobs/configs/demo.yaml 5f0c1d2e3a4b

Building takes the models that were trained last, refreshing those in use; both take the items that are prepared, and
promote what they built. Promoting an older version goes back to it; refreshing keeps to its models.

What loads models or items is done by one task. The driver reads manifests, and of the items one file at a time, for
their identity.
"""

import json
from typing import Any

from allmrec.alignment.tuned_encoder import find_tuned_encoder
from allmrec.bundle.build import build_bundle, is_fine_tuned, refresh_bundle
from allmrec.bundle.description import DESCRIPTION, MODELS, read_description, verify_bundle, verify_encoder
from allmrec.bundle.index import index_identity
from allmrec.bundle.items import bundle_items, new_texts
from allmrec.bundle.loading import load_bundle, probe
from allmrec.bundle.versions import bundle_versions, latest_bundle, promote
from allmrec.core.artifacts import find_manifest, read_manifest, writing
from allmrec.core.commit_log import entries_after
from allmrec.core.pretrained import model_identity
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.trained_items import words_digest
from jobs.config import Config
from jobs.embed import embed_by
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.preflight import ONE_TASK
from jobs.runtime.ray_data import on_worker
from jobs.runtime.step import Context, Stats, Step

SECTIONS = ("text", "teacher", "alignment", "llm", "prompt", "projection", "baselines", "bundle")


def run(context: Context) -> Stats:
    """Build the bundle and promote it, unless it is the one that was built last: a rollback from that one holds."""
    config, workspace = context.resolved(*SECTIONS), context.workspace
    if not _embed_new_texts(context, workspace):
        raise ValueError(f"{workspace.storage.uri} lacks the encoder of its alignment; run train-alignment again")
    version = on_worker(build_bundle, context.storage, config, index_above(context.config))
    before = find_manifest(workspace.bundle)
    counts = on_worker(counts_of, context.storage, version)
    if before is None or before.stats["version"] != version:
        on_worker(promote, context.storage, version)
    with writing(workspace.bundle, Workspace.bundle, context.fingerprint, config) as out:
        out.file(DESCRIPTION, json.dumps({"version": version}).encode())
        out.stats |= {"version": version, **counts}
    return {**out.stats, "folder": workspace.bundles.name(version)}


def refresh(context: Context) -> Stats:
    """Build a bundle of the models in use for the items that are prepared, and promote it."""
    used, workspace = latest_bundle(context.storage), context.workspace
    models = Workspace(workspace.bundles.at(used))
    if not _embed_new_texts(context, models):
        context.console.warning(
            f"bundle {used} stays, without the new items: {workspace.storage.uri} lacks the text "
            "encoder of its models; run train-alignment, then `allmrec bundle build`"
        )
        return {"version": used}
    version = on_worker(refresh_bundle, context.storage, used, index_above(context.config))
    on_worker(promote, context.storage, version)
    counts = on_worker(counts_of, context.storage, version)
    return {"version": version, "models of": used, **counts, "folder": workspace.bundles.name(version)}


def refreshed(context: Context) -> str | None:
    """Why there is nothing to refresh."""
    used = latest_bundle(context.storage)
    current = words_digest(context.workspace.items)
    description, rows = read_description(context.storage, used), read_manifest(context.workspace.items).rows
    has_index = "index" in description or not index_identity(rows, index_above(context.config))
    return f"bundle {used} has the items" if description["items"] == current and has_index else None


def index_above(config: Config) -> int | None:
    """With more items than this a bundle has an index of the teacher's; None where no run needs one."""
    return config.nightly.approximate_above if config.nightly.retriever == "teacher" else None


def _embed_new_texts(context: Context, models: Workspace) -> bool:
    """By the fine-tuned encoder, where there is one; `embed` has done so by the frozen one.

    Returns:
        whether the new texts are embedded: not where the encoder of these models is gone.
    """
    workspace = context.workspace
    if not is_fine_tuned(models) or not on_worker(count_new_texts, models, workspace.items):
        return True
    tuned = find_tuned_encoder(workspace, read_manifest(models.alignment))
    if tuned is not None:
        embed_by(context, tuned.model, tuned.embeddings)
    return tuned is not None


def count_new_texts(models: Workspace, prepared: Storage) -> int:
    """In a task: how many items have a text that the alignment has not seen."""
    return len(new_texts(models, bundle_items(models, prepared)))


def counts_of(storage: Storage, version: str) -> dict[str, int]:
    """In a task: which embeddings show how many of a bundle's items."""
    return load_bundle(storage, version).item_counts()


def plan(context: Context) -> Stats:
    manifests = [read_manifest(context.workspace.at(model)) for model in MODELS]
    files = [file for manifest in manifests for file in manifest.files.values()]
    return {"files": len(files), "megabytes": round(sum(file["size"] for file in files) / 1e6, 1)}


def external_inputs(context: Context) -> dict[str, Any]:
    """The LLM and SBERT, which are no artifacts, and of the items what a bundle holds: no counts."""
    llm, text, items = context.config.llm, context.config.text, context.workspace.items
    models = [model_identity(llm.name, llm.revision), model_identity(text.model, text.revision)]
    manifest = find_manifest(items)
    index = index_identity(manifest.rows, index_above(context.config)) if manifest else {}
    return {"models": models, "items": words_digest(items) if manifest else None, **index}


def show(config: Config, console: Console, version: str | None) -> None:
    """What a bundle is: the promoted one by default."""
    run = config.workspace.storage
    description = read_description(run, version or latest_bundle(run))
    rows = [[key, description[key]] for key in ("version", "code")]
    rows += [[f"{name} model", model["name"]] for name, model in description["models"].items()]
    rows += [[table, digest] for table, digest in description["data"].items()]
    for part, stats in description["stats"].items():
        rows += [[f"{part}: {name}", value] for name, value in stats.items()]
    console.table(f"bundle {description['version']}", ["what", "value"], rows)


def list_bundles(config: Config, console: Console) -> None:
    run = config.workspace.storage
    promotions = list(entries_after(config.workspace.bundles, 0))
    last = {entry["version"]: entry for entry in promotions}
    rows: list[list[Any]] = []
    for version in bundle_versions(run):
        try:
            description, entry = read_description(run, version), last.get(version, {})
        except ValueError as error:  # the others are to be seen all the same
            rows.append([version, str(error), "", "", ""])
            continue
        megabytes = round(sum(file["size"] for file in description["files"].values()) / 1e6, 1)
        in_use = bool(entry) and entry == promotions[-1]
        rows.append([version, description["models"]["llm"]["name"], megabytes, entry.get("promoted_at", ""), in_use])
    console.table("bundles", ["version", "llm", "megabytes", "promoted_at", "in use"], rows)


def verify(config: Config, console: Console, version: str | None) -> None:
    """Load a bundle and let it score; every file is compared with its hash."""
    run = config.workspace.storage
    version = version or latest_bundle(run)
    description = verify_bundle(run, version)
    verify_encoder(run, description)
    bundle = load_bundle(run, version)
    probe(bundle)
    console.event("verified", version=version, files=len(description["files"]), **bundle.item_counts())


def promote_version(config: Config, console: Console, version: str) -> None:
    entry = promote(config.workspace.storage, version)
    if entry is None:
        console.skip("promote", f"bundle {version} is in use already")
    else:
        console.event("promoted", version=version, log_entry=entry["n"])


STEP = Step(
    "bundle",
    sections=SECTIONS,
    inputs=MODELS,
    late_inputs=(Workspace.items, Workspace.item_text_embeddings, Workspace.sequences),
    outputs=(Workspace.bundle,),
    optional_inputs=lambda config: tuple(f"systems/{system}" for system in config.systems_beside),
    run=run,
    plan=plan,
    external_inputs=external_inputs,
    needs=ONE_TASK,
)

REFRESH = Step(
    "bundle refresh",
    sections=(),
    inputs=(Workspace.bundle, Workspace.items, Workspace.sequences),
    outputs=(),
    late_inputs=(Workspace.item_text_embeddings,),
    run=refresh,
    plan=lambda context: {"up to date": refreshed(context) is not None},
    finished=refreshed,
    needs=ONE_TASK,
)

if __name__ == "__main__":
    main("bundle", "build")
