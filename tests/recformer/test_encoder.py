"""Which encoders are taken, as which; what is wrong with the others is said in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from allmrec.recformer.build import build_recformer
from allmrec.recformer.config import RecformerConfig
from allmrec.recformer.encoder import first_states, load_encoder, max_tokens, positions_of
from allmrec.recformer.network import Recformer, read_items
from tests.recformer.conftest import ENCODERS, catalogue, save_encoder
from tests.text.tiny import change


def of(folder: str, **settings) -> RecformerConfig:
    return RecformerConfig(encoder=folder, **settings)


@pytest.mark.parametrize("kind", ENCODERS)
def test_embeddings_from_outside_give_what_the_model_makes_of_tokens(kind, folders):
    encoder, _ = load_encoder(of(folders[kind]))
    whole = AutoModel.from_pretrained(folders[kind]).eval()
    token_BT = torch.randint(2, 20, (2, 16), generator=torch.Generator().manual_seed(0))
    mask_BT = (torch.arange(16) < torch.tensor([[16], [11]])).long()
    token_BT = torch.where(mask_BT > 0, token_BT, 1)
    options = {"global_attention_mask": (torch.arange(16) == 0).long().expand(2, -1)} if kind == "longformer" else {}
    with torch.no_grad():
        expected_BD = whole(input_ids=token_BT, attention_mask=mask_BT, **options).last_hidden_state[:, 0]
        found_BD = first_states(encoder, encoder.get_input_embeddings()(token_BT), mask_BT)
    torch.testing.assert_close(found_BD, expected_BD, atol=1e-5, rtol=1e-4)


def test_without_kinds_and_recency_it_is_the_plain_encoder(folders):
    network, sentences, _ = build_recformer(of(folders["bert"]), catalogue, seed=0)
    for table in (network.kinds, network.recency):
        torch.nn.init.zeros_(table.weight)
    word_1T = sentences.words_NL[[3]].long()
    token_1T = torch.cat([torch.tensor([[sentences.cls]]), word_1T[:, word_1T[0] > 0] // 3], dim=1)
    with torch.no_grad():
        expected_D = network.encoder(input_ids=token_1T).last_hidden_state[0, 0]
        (found_D,) = read_items(network, sentences, np.array([3]), 100)
    torch.testing.assert_close(found_D, torch.nn.functional.normalize(expected_D, dim=0), atol=1e-5, rtol=1e-4)


def test_a_token_beyond_the_window_reaches_the_front(folders):
    encoder, _ = load_encoder(of(folders["longformer"]))
    embeds_BTH = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
    embeds_BTH[1, :39] = embeds_BTH[0, :39]
    with torch.no_grad():
        one_D, other_D = first_states(encoder, embeds_BTH, torch.ones(2, 40, dtype=torch.int64))
    assert (one_D - other_D).abs().max() > 1e-4


def test_positions_are_what_an_encoder_can_read(folders, tmp_path):
    limits = {kind: positions_of(load_encoder(of(folder))[0]) for kind, folder in folders.items()}
    assert limits == {"bert": 40, "longformer": 40, "roberta": 40}, "RoBERTa's count from behind padding"
    encoder, _ = load_encoder(of(folders["bert"]))
    assert max_tokens(of(folders["bert"], max_tokens=9), encoder) == 9
    with pytest.raises(
        ValueError, match=r"takes 40 tokens, and baselines.recformer.max_tokens is 41; lower it to that"
    ):
        load_encoder(of(folders["bert"], max_tokens=41))
    wide = save_encoder(tmp_path / "wide", "longformer", max_position_embeddings=1202, attention_window=[128, 32])
    encoder, _ = load_encoder(of(wide))
    assert encoder.config.attention_window == [64, 32] and max_tokens(of(wide), encoder) == 1024
    assert positions_of(encoder) == 1152


@pytest.mark.parametrize("kind", ["gpt2", "t5", "decoder"])
def test_what_does_not_read_both_ways_is_refused(kind, tmp_path):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2} if kind == "gpt2" else {"is_decoder": kind == "decoder"}
    sizes |= {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2} if kind == "t5" else {}
    folder = save_encoder(tmp_path / kind, "bert" if kind == "decoder" else kind, **sizes)
    with pytest.raises(
        ValueError, match=r"is no bidirectional encoder of transformers .*or set it to null for a small"
    ):
        load_encoder(of(folder))


def test_a_folder_without_a_model_and_one_without_a_tokenizer_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"encoder 'standins/encoder' is no bidirectional encoder"):
        load_encoder(of("standins/encoder"))
    with pytest.raises(ValueError, match=r"^baselines.recformer.encoder 'nowhere/at-all' cannot be loaded"):
        load_encoder(of("nowhere/at-all"))
    bare = save_encoder(tmp_path / "bare", "bert")
    for path in Path(bare).glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer that can be read .*put its tokenizer.json beside"):
        build_recformer(of(bare), catalogue, seed=0)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    folder = save_encoder(tmp_path / "bert", "bert")
    change(tmp_path / "bert", **{"embeddings.word_embeddings.weight": None})
    with pytest.raises(ValueError, match=r"it lacks 1 weights: embeddings.word_embeddings.weight"):
        load_encoder(of(folder))


def test_the_fresh_encoder_is_drawn_from_the_seed_and_leaves_the_generator(folders):
    def weights(seed: int) -> torch.Tensor:
        network: Recformer = build_recformer(RecformerConfig(), catalogue, seed)[0]
        return torch.nn.utils.parameters_to_vector(network.parameters())

    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.random.get_rng_state(), state)
