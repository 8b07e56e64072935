"""Take the models of another run, which was trained on another catalogue, for this run's items (paper section 5.2.5).

    python -m jobs.transfer --config my-other-shop.yaml

In the place of the three training verbs, where `evaluation.split` is `{kind: cross-domain, trained_in: runs/movies}`:
run `prepare` and `embed` before it, `bundle` and `evaluate` after it. Reads `teacher`, `alignment` and `projectors` of
the other run, and writes them here for the items that are here.
"""

from typing import Any

import torch

from allmrec.alignment.network import load_network, save_alignment
from allmrec.alignment.transfer import decoded_items, drawn_items, with_items
from allmrec.artifacts import Manifest, read_file, read_manifest, seal, unseal
from allmrec.cf.teacher import TeacherConfig, load_teacher, save_teacher
from allmrec.storage import Storage, open_storage
from jobs.cli import main
from jobs.embed import embed_by
from jobs.step import Context, Facts, Step
from jobs.train_alignment import ENCODER, read_texts
from jobs.train_projection import identity

MODELS = ("teacher", "alignment", "projectors")


def run(context: Context) -> Facts:
    other, manifests = trained(context)
    check(context, other, manifests)
    config = TeacherConfig(**manifests["teacher"].config["teacher"])
    texts_NS, network = texts(context, other, manifests), load_network(other.at("alignment"))
    teacher = load_teacher(other.at("teacher"))
    if context.config.evaluation.split.item_embeddings == "decoded":
        items_ND = decoded_items(network, texts_NS)
    else:
        items_ND = drawn_items(teacher, len(texts_NS), context.config.seed)
    teacher, joint = with_items(teacher, config, items_ND), network.joint(items_ND, texts_NS)

    targets = {name: context.artifact(name) for name in MODELS}
    for target in targets.values():
        unseal(target)
    files = {
        "teacher": save_teacher(targets["teacher"], teacher),
        "alignment": save_alignment(targets["alignment"], network, *joint),
        "projectors": manifests["projectors"].files,
    }
    for name in files["projectors"]:
        targets["projectors"].write(name, read_file(other.at("projectors"), manifests["projectors"], name))
    facts: Facts = {"num_items": len(items_ND) - 1, "trained_in": other.uri}
    for name, manifest in manifests.items():
        seal(targets[name], name, context.made_by, files[name], manifest.config, manifest.facts | facts)
    return facts


def texts(context: Context, other: Storage, manifests: dict[str, Manifest]) -> torch.Tensor:
    """Q_NS of this run's items, by the encoder that the other run's Stage-1 ended with.

    Raises:
        ValueError: that one was fine-tuned, and is another training's by now.
    """
    if manifests["alignment"].config["alignment"]["text_encoder"] == "frozen":
        return read_texts(context.artifact("item_text_embeddings"))
    if read_manifest(other.at("fine_tuned")).made_by != manifests["alignment"].made_by:
        raise ValueError(f"{other.uri}: train-alignment was begun again and not finished; run it there first")
    embed_by(context, other.name(f"fine_tuned/{ENCODER}"), "fine_tuned_text_embeddings")
    return read_texts(context.artifact("fine_tuned_text_embeddings"))


def trained(context: Context) -> tuple[Storage, dict[str, Manifest]]:
    """The other run and its models. Raises ValueError where none is named, or it is not trained."""
    uri = context.config.evaluation.split.trained_in
    if uri is None:
        raise ValueError(
            "transfer needs another run: set evaluation.split to {kind: cross-domain, trained_in: <folder or URI>}"
        )
    other = open_storage(uri, context.config.storage)
    return other, {name: read_manifest(other.at(name)) for name in MODELS}


def check(context: Context, other: Storage, manifests: dict[str, Manifest]) -> None:
    """Raises ValueError unless texts are embedded as there, and the LLM is the one of that run's projectors."""
    here, there = (read_manifest(run.at("item_text_embeddings")).facts["encoder"] for run in (context.storage, other))
    if here != there:
        raise ValueError(f"texts are embedded by {here}, and in {other.uri} by {there}; use the same text.model")
    llm = manifests["projectors"].facts["llm"]
    if identity(context) != llm:
        raise ValueError(f"the projectors of {other.uri} were trained into the LLM {llm}; point llm.name at that one")


def outside(context: Context) -> Any:
    return {name: manifest.digest for name, manifest in trained(context)[1].items()}


def plan(context: Context) -> Facts:
    return {"items": read_manifest(context.artifact("items")).rows, "models from": trained(context)[0].uri}


STEP = Step(
    "transfer",
    sections=("evaluation", "llm"),
    inputs=("items", "item_text_embeddings"),
    outputs=MODELS,
    run=run,
    plan=plan,
    outside=outside,
)

if __name__ == "__main__":
    main(STEP)
