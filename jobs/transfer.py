"""Take the models of another run, which was trained on another catalogue, for this run's items (paper section 5.2.5).

    python -m jobs.transfer --config my-other-shop.yaml

In the place of the three training verbs, where `evaluation.split` is `{kind: cross-domain, trained_in: runs/movies}`:
run `prepare` and `embed` before it, `bundle` and `evaluate` after it. Reads `teacher`, `alignment` and `projectors` of
the other run, and writes them here for the items that are here, by one task.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from allmrec.alignment.network import load_network, save_alignment
from allmrec.alignment.transfer import decoded_items, drawn_items, read_items, with_items
from allmrec.alignment.tuned_encoder import DIGEST, find_tuned_encoder
from allmrec.cf.teacher import load_teacher, save_teacher
from allmrec.core.artifacts import ArtifactWriter, Manifest, file_entry, invalidate, read_file, read_manifest, writing
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace, open_workspace
from allmrec.data.trained_items import write_trained_items
from allmrec.text.embeddings import read_texts
from jobs.embed import embed_by
from jobs.runtime.command import main
from jobs.runtime.preflight import ONE_TASK
from jobs.runtime.ray_data import on_worker
from jobs.runtime.step import Context, Stats, Step
from jobs.train_projection import identity

MODELS = (Workspace.teacher, Workspace.alignment, Workspace.projectors)


def run(context: Context) -> Stats:
    other, manifests = trained(context)
    check(context, other, manifests)
    split, texts = context.config.evaluation.split, embedded(context, other, manifests)
    files = on_worker(write_models, other, context.workspace, texts, split.item_embeddings, context.config.seed)
    stats: Stats = {"num_items": read_manifest(context.workspace.items).rows, "trained_in": other.storage.uri}
    for name in MODELS:
        with model(context, name, manifests, stats) as out:
            out.add(files[name])
    return stats


def write_models(
    other: Workspace, workspace: Workspace, texts: Storage, item_embeddings: str, seed: int
) -> dict[str, dict[str, Any]]:
    """In a task: write the other run's models for the items that are here; returns the entries of each one's files.

    Args:
        texts: Q of the items, by the encoder that the other run's Stage-1 ended with.
        item_embeddings: as `evaluation.split.item_embeddings`.
    """
    texts_NS, network, teacher = read_texts(texts), load_network(other.alignment), load_teacher(other.teacher)
    items_ND = read_items(teacher, read_texts(workspace.item_text_embeddings))
    if items_ND is None and item_embeddings == "decoded":
        items_ND = decoded_items(network, texts_NS)
    elif items_ND is None:
        items_ND = drawn_items(teacher, len(texts_NS), seed)
    teacher, joint = with_items(teacher, items_ND), network.joint(items_ND, texts_NS)
    return {
        Workspace.teacher: save_teacher(workspace.teacher, teacher)
        | write_trained_items(workspace.teacher, workspace.items),
        Workspace.alignment: save_alignment(workspace.alignment, network, *joint)
        | write_trained_items(workspace.alignment, workspace.items),
        Workspace.projectors: copied(other.projectors, workspace.projectors),
    }


def copied(source: Storage, target: Storage) -> dict[str, dict[str, Any]]:
    """The files of an artifact, as they are, under another one's folder; returns their entries."""
    manifest, entries = read_manifest(source), dict[str, dict[str, Any]]()
    invalidate(target)
    for name in manifest.files:
        data = read_file(source, manifest, name)
        target.write(name, data)
        entries[name] = file_entry(data)
    return entries


@contextmanager
def model(context: Context, name: str, manifests: dict[str, Manifest], stats: Stats) -> Iterator[ArtifactWriter]:
    """Write a model under the config and the stats of the other run's; this one's says which form shows an item."""
    manifest = manifests[name]
    own = {"bundle": context.resolved("bundle")["bundle"]} if "bundle" in manifest.config else {}
    with writing(context.workspace.at(name), name, context.fingerprint, manifest.config | own) as out:
        out.stats |= manifest.stats | stats
        out.stats.pop(DIGEST, None)  # that encoder is in the other workspace
        yield out


def embedded(context: Context, other: Workspace, manifests: dict[str, Manifest]) -> Storage:
    """Where Q of this run's items is, by the encoder that the other run's Stage-1 ended with.

    Raises:
        ValueError: that one was fine-tuned, and a later training has replaced it.
    """
    if manifests["alignment"].config["alignment"]["text_encoder"] == "frozen":
        return context.workspace.item_text_embeddings
    tuned = find_tuned_encoder(other, manifests["alignment"])
    if tuned is None:
        raise ValueError(f"{other.storage.uri}: train-alignment was started again and not finished; run it there first")
    embed_by(context, tuned.model, Workspace.fine_tuned_text_embeddings)
    return context.workspace.fine_tuned_text_embeddings


def trained(context: Context) -> tuple[Workspace, dict[str, Manifest]]:
    """The other run and its models. Raises ValueError where none is named, or it is not trained."""
    uri = context.config.evaluation.split.trained_in
    if uri is None:
        raise ValueError(
            "transfer needs another workspace: set evaluation.split: {kind: cross-domain, trained_in: <folder or URI>}"
        )
    other = open_workspace(uri, context.config.storage)
    return other, {name: read_manifest(other.at(name)) for name in MODELS}


def check(context: Context, other: Workspace, manifests: dict[str, Manifest]) -> None:
    """Raises ValueError unless texts are embedded as there, and the LLM is the one of that workspace's projectors."""
    uri = other.storage.uri
    here, there = (read_manifest(one.item_text_embeddings).stats["encoder"] for one in (context.workspace, other))
    if here != there:
        raise ValueError(f"texts are embedded by {here}, and in {uri} by {there}; use the same text.model")
    llm = manifests["projectors"].stats["llm"]
    if identity(context) != llm:
        raise ValueError(f"the projectors of {uri} were trained into the LLM {llm}; point llm.name at that one")


def external_inputs(context: Context) -> Any:
    return {name: manifest.digest for name, manifest in trained(context)[1].items()}


def plan(context: Context) -> Stats:
    return {"items": read_manifest(context.workspace.items).rows, "models from": trained(context)[0].storage.uri}


STEP = Step(
    "transfer",
    sections=("evaluation", "llm", "bundle"),
    inputs=(Workspace.items, Workspace.item_text_embeddings),
    outputs=MODELS,
    run=run,
    plan=plan,
    external_inputs=external_inputs,
    needs=ONE_TASK,
)

if __name__ == "__main__":
    main("transfer")
