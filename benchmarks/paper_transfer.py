"""The models of one config on the catalogue of another, for the paper's Table 7.

A-LLMRec, its teacher and TALLRec are a run of their own, by `transfer`. MoRec and RECFORMER need none: they know the
other catalogue's items by its texts.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from allmrec.alignment.transfer import read_items, with_items
from allmrec.bundle.build import SYSTEMS
from allmrec.cf.teacher import Teacher, load_teacher
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.recformer.artifact import load_recformer, read_new_items
from allmrec.text.embeddings import read_texts
from benchmarks.paper_numbers import ALLMREC, SBERT
from benchmarks.paper_runs import ALONE, TEACHER, PaperRuns
from benchmarks.teacher_alone import evaluate_alone

TRANSFERRED = "tallrec"  # knows no items, so it serves any catalogue


def transferred(first: PaperRuns, other: PaperRuns, wanted: Sequence[str]) -> PaperRuns:
    """A run on the second config's catalogue with the first one's models; items are shown by e_i of others."""
    shared = {Workspace.text_cache: other.base}
    systems, beside_it = [TEACHER, ALLMREC, SBERT], "null"
    if TRANSFERRED in wanted and TRANSFERRED in first.base.systems_beside:
        shared[f"systems/{TRANSFERRED}"] = first.base
        systems, beside_it = [*systems, TRANSFERRED], f"{{{TRANSFERRED}: {{}}}}"
    changes = [
        "evaluation.split.kind=cross-domain",
        f"evaluation.split.trained_in={first.base.workspace_uri}",
        "evaluation.split.item_embeddings=drawn",
        f"evaluation.systems=[{', '.join(systems)}]",
        f"evaluation.baseline={TEACHER}",
        f"baselines={beside_it}",
        "bundle.min_interactions_for_cf=0",
    ]
    return other.under(f"by-{first.base.name}", changes, shared)


def known_by_texts(name: str, models: Workspace, run: PaperRuns) -> Workspace:
    """Figures of a system of KNOWN_BY_TEXTS on another catalogue."""
    storage, workspace = models.at(SYSTEMS[name]), run.base.workspace
    identity = [read_manifest(one).digest for one in (storage, workspace.items, workspace.item_text_embeddings)]
    teacher, out = KNOWN_BY_TEXTS[name](storage, workspace), workspace.storage.at(f"{ALONE}/{name}")
    return evaluate_alone(teacher, identity, workspace, out, run.base.nightly.num_candidates)


def by_embeddings(storage: Storage, workspace: Workspace) -> Teacher:
    """MoRec, with E_i by the embeddings of this catalogue's texts."""
    teacher = load_teacher(storage)
    items_ND = read_items(teacher, read_texts(workspace.item_text_embeddings))
    assert items_ND is not None, "MoRec reads texts"
    return with_items(teacher, items_ND)


def by_words(storage: Storage, workspace: Workspace) -> Teacher:
    """RECFORMER, with vectors by the words of this catalogue, by the weights that made those of its own."""
    vectors_ND, words_NL = (F.pad(part, (0, 0, 1, 0)) for part in read_new_items(storage, read_table(workspace.items)))
    teacher = load_recformer(storage, words_NL)
    teacher.take_items(torch.zeros(len(vectors_ND), dtype=torch.int64), vectors_ND)
    return teacher


# Systems that know the items of any catalogue by their texts.
KNOWN_BY_TEXTS = {"morec": by_embeddings, "recformer": by_words}
