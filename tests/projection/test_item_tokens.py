import torch

from allmrec.projection import item_tokens
from allmrec.projection.item_tokens import ItemTokens
from allmrec.projection.projectors import fresh_projectors


def test_items_are_projected_as_a_whole_catalogue_would_be():
    projector, inputs_NJ = fresh_projectors(8, 16, 32, seed=0).item, torch.randn(2500, 16)
    items_S = torch.randint(2500, (3000,))
    with torch.inference_mode():
        assert torch.equal(ItemTokens(projector, inputs_NJ)[items_S], projector(inputs_NJ)[items_S])


def test_memory_is_that_of_the_items_that_are_shown(monkeypatch):
    monkeypatch.setattr(item_tokens, "_BLOCK", 4)
    read = []
    tokens = ItemTokens(lambda rows_RJ: read.append(len(rows_RJ)) or rows_RJ + 1, torch.arange(1000.0)[:, None])
    assert tokens[torch.tensor([7, 900, 7, 3, 5, 6, 7])].squeeze(1).tolist() == [8, 901, 8, 4, 6, 7, 8]
    assert read == [4, 4], "each item once, in blocks of one size"
