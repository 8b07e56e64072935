"""The rows of the paper's Tables 8 and 9, and training on all items: the config keys of each."""

from benchmarks.paper_numbers import FIRST, TABLES

STAGE_1 = ("matching", "item_recon", "text_recon", "rec")
FINE_TUNED = ["alignment.text_encoder=fine-tuned"]
ALL_ITEMS = ["alignment.targets=all", "projection.targets=all"]
BESIDE = ("random", "popularity", "teacher", "llm-only")  # of the config's own run


def without(*losses: str) -> list[str]:
    kept = [loss for loss in STAGE_1 if loss not in losses]
    return [*FINE_TUNED, f"alignment.losses=[{', '.join(kept)}]"]


# By table: the row's name in the paper, and the keys that make it.
ABLATIONS: dict[str, dict[str, list[str]]] = {
    "8": {
        FIRST: FINE_TUNED,
        "w/o L_matching": without("matching"),
        "w/o L_item-recon & L_text-recon": without("item_recon", "text_recon"),
        "w/o L_rec": without("rec"),
        "Freeze SBERT": ["alignment.text_encoder=frozen"],
    },
    "9": {
        FIRST: [],
        "w/o user representation": ["prompt.user_slot=false"],
        "w/o joint embedding": ["prompt.item_slots=false"],
        # Not started from the teacher, which would bring in the collaborative knowledge that this row removes.
        "random joint embedding": ["projection.item_input=random", "projection.start=ordinary"],
        "MLP-LLM": ["projection.item_input=teacher"],
    },
    "all": {FIRST: [], "A-LLMRec_all": ALL_ITEMS},
}
assert all(tuple(rows) == TABLES[table].rows for table, rows in ABLATIONS.items())
