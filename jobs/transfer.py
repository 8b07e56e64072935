"""Take the models of another run, which was trained on another catalogue, for this run's items (paper section 5.2.5).

    python -m jobs.transfer --config my-other-shop.yaml

In the place of the three training verbs, where `evaluation.split` is `{kind: cross-domain, trained_in: runs/movies}`:
run `prepare` and `embed` before it, `bundle` and `evaluate` after it. Reads `teacher`, `alignment` and `projectors` of
the other run, and writes them here for the items that are here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from allmrec.alignment.network import load_network, save_alignment
from allmrec.alignment.transfer import decoded_items, drawn_items, read_items, with_items
from allmrec.alignment.tuned_encoder import DIGEST, find_tuned_encoder
from allmrec.cf.teacher import load_teacher, save_teacher
from allmrec.core.artifacts import ArtifactWriter, Manifest, read_file, read_manifest, writing
from allmrec.core.workspace import Workspace, open_workspace
from allmrec.data.catalogue import read_item_table
from allmrec.data.trained_items import write_trained_items
from allmrec.text.embeddings import read_texts
from jobs.embed import embed_by
from jobs.runtime.command import main
from jobs.runtime.step import Context, Stats, Step
from jobs.train_projection import identity

MODELS = (Workspace.teacher, Workspace.alignment, Workspace.projectors)


def run(context: Context) -> Stats:
    other, manifests = trained(context)
    check(context, other, manifests)
    texts_NS, network = texts(context, other, manifests), load_network(other.alignment)
    teacher = load_teacher(other.teacher)
    items_ND = read_items(teacher, read_texts(context.workspace.item_text_embeddings))
    if items_ND is None and context.config.evaluation.split.item_embeddings == "decoded":
        items_ND = decoded_items(network, texts_NS)
    elif items_ND is None:
        items_ND = drawn_items(teacher, len(texts_NS), context.config.seed)
    teacher, joint = with_items(teacher, items_ND), network.joint(items_ND, texts_NS)

    workspace, projectors = context.workspace, manifests[Workspace.projectors]
    stats: Stats = {"num_items": len(items_ND) - 1, "trained_in": other.storage.uri}
    with (
        model(context, Workspace.teacher, manifests, stats) as teacher_out,
        model(context, Workspace.alignment, manifests, stats) as alignment_out,
        model(context, Workspace.projectors, manifests, stats) as projectors_out,
    ):
        teacher_out.add(save_teacher(workspace.teacher, teacher))
        alignment_out.add(save_alignment(workspace.alignment, network, *joint))
        for out in (teacher_out, alignment_out):
            write_trained_items(out, read_item_table(workspace.items))
        for name in projectors.files:
            projectors_out.file(name, read_file(other.projectors, projectors, name))
    return stats


@contextmanager
def model(context: Context, name: str, manifests: dict[str, Manifest], stats: Stats) -> Iterator[ArtifactWriter]:
    """Write a model under the config and the stats of the other run's; this one's says which form shows an item."""
    manifest = manifests[name]
    own = {"bundle": context.resolved("bundle")["bundle"]} if "bundle" in manifest.config else {}
    with writing(context.workspace.at(name), name, context.fingerprint, manifest.config | own) as out:
        out.stats |= manifest.stats | stats
        out.stats.pop(DIGEST, None)  # that encoder is in the other workspace
        yield out


def texts(context: Context, other: Workspace, manifests: dict[str, Manifest]) -> torch.Tensor:
    """Q_NS of this run's items, by the encoder that the other run's Stage-1 ended with.

    Raises:
        ValueError: that one was fine-tuned, and a later training has replaced it.
    """
    if manifests["alignment"].config["alignment"]["text_encoder"] == "frozen":
        return read_texts(context.workspace.item_text_embeddings)
    tuned = find_tuned_encoder(other, manifests["alignment"])
    if tuned is None:
        raise ValueError(f"{other.storage.uri}: train-alignment was started again and not finished; run it there first")
    embed_by(context, tuned.model, Workspace.fine_tuned_text_embeddings)
    return read_texts(context.workspace.fine_tuned_text_embeddings)


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
)

if __name__ == "__main__":
    main("transfer")
