"""Gather what scoring needs into one verified, immutable bundle and make it the run's newest.

python -m jobs.bundle --config jobs/configs/demo.yaml
"""

import json

from allmrec.artifacts import describe, read_manifest, seal, unseal
from allmrec.bundle import DESCRIPTION, PARTS, POINTER, build_bundle, load_bundle
from allmrec.models import model_identity
from jobs.cli import main
from jobs.step import Context, Facts, Step

SECTIONS = ("data", "text", "teacher", "alignment", "llm", "prompt", "projection", "bundle")


def run(context: Context) -> Facts:
    config = context.resolved(*SECTIONS)
    version = build_bundle(context.storage, config)
    forms = load_bundle(context.storage, version).forms()
    pointer = context.artifact(POINTER)
    unseal(pointer)
    data = json.dumps({"version": version}).encode()
    pointer.write(DESCRIPTION, data)
    seal(pointer, POINTER, context.made_by, {DESCRIPTION: describe(data)}, config, {"version": version, **forms})
    return {"version": version, **forms, "where": context.storage.name(f"bundles/{version}")}


def plan(context: Context) -> Facts:
    manifests = [read_manifest(context.artifact(part)) for part in PARTS]
    files = [file for manifest in manifests for file in manifest.files.values()]
    return {"files": len(files), "megabytes": round(sum(file["size"] for file in files) / 1e6, 1)}


def models(context: Context) -> list[str]:
    """The LLM and SBERT are no artifacts of the run, and the bundle names them."""
    llm, text = context.config.llm, context.config.text
    return [model_identity(llm.name, llm.revision), model_identity(text.model, text.revision)]


STEP = Step(
    "bundle",
    sections=SECTIONS,
    inputs=(*PARTS, "sequences"),
    outputs=(POINTER,),
    run=run,
    plan=plan,
    outside=models,
)

if __name__ == "__main__":
    main(STEP)
