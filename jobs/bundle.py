"""Gather what scoring needs into one verified, immutable bundle, and say which bundle is in use.

    allmrec bundle build --config jobs/configs/demo.yaml
    allmrec bundle promote --config jobs/configs/demo.yaml 5f0c1d2e3a4b

Building promotes what it built. Promoting an older version goes back to it, until another one is built.
"""

import json
from typing import Any

from allmrec.bundle import (
    DESCRIPTION,
    PARTS,
    build_bundle,
    bundle_versions,
    latest_bundle,
    load_bundle,
    promote,
    read_description,
    verify_bundle,
)
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.commit_log import entries_after
from allmrec.core.pretrained import model_identity
from allmrec.core.workspace import Workspace
from jobs.config import Config
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.step import Context, Stats, Step

SECTIONS = ("data", "text", "teacher", "alignment", "llm", "prompt", "projection", "bundle")


def run(context: Context) -> Stats:
    config = context.resolved(*SECTIONS)
    version = build_bundle(context.storage, config)
    counts = load_bundle(context.storage, version).embedding_choice().embedding_counts()
    promote(context.storage, version)
    with writing(context.workspace.bundle, Workspace.bundle, context.fingerprint, config) as out:
        out.file(DESCRIPTION, json.dumps({"version": version}).encode())
        out.stats |= {"version": version, **counts}
    return {**out.stats, "where": context.workspace.bundles.name(version)}


def plan(context: Context) -> Stats:
    manifests = [read_manifest(context.workspace.at(part)) for part in PARTS]
    files = [file for manifest in manifests for file in manifest.files.values()]
    return {"files": len(files), "megabytes": round(sum(file["size"] for file in files) / 1e6, 1)}


def models(context: Context) -> list[str]:
    """The LLM and SBERT are no artifacts of the run, and the bundle names them."""
    llm, text = context.config.llm, context.config.text
    return [model_identity(llm.name, llm.revision), model_identity(text.model, text.revision)]


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
    run = config.workspace.storage
    description = verify_bundle(run, version or latest_bundle(run))
    console.event("verified", version=description["version"], files=len(description["files"]))


def promote_version(config: Config, console: Console, version: str) -> None:
    entry = promote(config.workspace.storage, version)
    if entry is None:
        console.skip("promote", f"bundle {version} is in use already")
    else:
        console.event("promoted", version=version, log_entry=entry["n"])


STEP = Step(
    "bundle",
    sections=SECTIONS,
    inputs=(*PARTS, Workspace.sequences),
    outputs=(Workspace.bundle,),
    run=run,
    plan=plan,
    external_inputs=models,
)

if __name__ == "__main__":
    main("bundle", "build")
