"""SBERT in training: it embeds as `embed` does, each text once, on one worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.alignment import texts as module
from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.texts import DistinctTexts, TrainedTexts, make_dense
from allmrec.core.artifacts import writing
from allmrec.core.storage import open_storage
from allmrec.data.catalogue import Catalogue
from allmrec.demo.encoder import build_encoder
from allmrec.text.encoder import TextConfig, TextEncoder, load_encoder
from schemas import items
from tests.text.tiny import build_tiny_sbert

WORDS = np.array(["Moonfall", "Saga", "Ironcrest", "Derby", "dragon", "coach", "the", "last", "epic", "film"])
LENGTHS = np.random.default_rng(0).integers(1, 25, 40)
TEXTS = [" ".join(np.random.default_rng(row).choice(WORDS, length)) for row, length in enumerate(LENGTHS)]
TEXTS[7] = TEXTS[3]  # two items of one text
CATALOGUE = pa.array(["", *TEXTS])
ITEMS = np.array([5, 4, 8, 40, 1, 5, 22, 13, 4, 31], np.int32)  # 4 and 8 are those two


@pytest.fixture(scope="module", params=["static", "transformer"])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    build_encoder(pa.array(TEXTS), folder) if request.param == "static" else build_tiny_sbert(TEXTS, folder)
    return folder


def trained(folder: Path, max_chars: int = 4000, **settings) -> TrainedTexts:
    encoder = load_encoder(TextConfig(model=str(folder)))
    return TrainedTexts(
        AlignmentConfig(**{"texts_per_pass": 3} | settings), encoder, DistinctTexts.of(CATALOGUE), max_chars
    )


@pytest.mark.parametrize("max_chars", [4000, 30])
def test_rows_get_what_embed_makes_of_their_texts(folder, max_chars):
    encoder = TextEncoder(TextConfig(model=str(folder), max_chars=max_chars))
    expected_NS = np.array(encoder(pa.table({"text": CATALOGUE}))["embedding"].to_pylist(), np.float32)
    found_RS = trained(folder, max_chars)(ITEMS).detach().numpy()
    np.testing.assert_allclose(found_RS, expected_NS[ITEMS], atol=1e-6)


ENCODERS: dict[str, dict[str, Any]] = {
    "a default prompt": {"prompts": {"passage": "epic film the "}, "default_prompt_name": "passage"},
    "a prompt that is not pooled": {
        "prompts": {"passage": "epic film the "},
        "default_prompt_name": "passage",
        "include_prompt": False,
    },
    "short texts": {"max_tokens": 6},
    "short texts behind a prompt": {"max_tokens": 6, "prompts": {"a": "epic film "}, "default_prompt_name": "a"},
    "unit length": {"normalized": True},
    "few dimensions": {"truncate_dim": 5},
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("prompt", [None, "", "coach Derby: "])
def test_an_encoders_own_ways_are_those_of_embed(kind, prompt, tmp_path):
    build_tiny_sbert(TEXTS, tmp_path, **ENCODERS[kind])
    config = TextConfig(model=str(tmp_path), prompt=prompt)
    expected_NS = np.array(TextEncoder(config)(pa.table({"text": CATALOGUE}))["embedding"].to_pylist(), np.float32)
    found_RS = TrainedTexts(AlignmentConfig(texts_per_pass=3), load_encoder(config), DistinctTexts.of(CATALOGUE), 4000)(
        ITEMS
    )
    np.testing.assert_allclose(found_RS.detach().numpy(), expected_NS[ITEMS], atol=1e-6)
    plain = load_encoder(config).encode(CATALOGUE.to_pylist(), prompt="" if prompt is None else "x ")
    has_own_prompt = "prompts" in ENCODERS[kind]
    assert np.allclose(plain, expected_NS, atol=1e-6) == (prompt is None and not has_own_prompt), "prompts matter"


def test_types_of_tokens_are_kept(tmp_path):
    build_tiny_sbert(TEXTS, tmp_path)
    encoder = load_encoder(TextConfig(model=str(tmp_path)))
    preprocess = encoder.preprocess

    def typed(texts, **settings):
        features = preprocess(texts, **settings)
        return features | {"token_type_ids": (features["input_ids"] % 2) * features["attention_mask"]}

    encoder.preprocess = typed
    expected_NS = encoder.encode(CATALOGUE.to_pylist())
    found_RS = TrainedTexts(AlignmentConfig(texts_per_pass=3), encoder, DistinctTexts.of(CATALOGUE), 4000)(ITEMS)
    np.testing.assert_allclose(found_RS.detach().numpy(), expected_NS[ITEMS], atol=1e-6)


def test_what_is_read_beside_tokens_is_refused(folder):
    encoder = load_encoder(TextConfig(model=str(folder)))
    preprocess = encoder.preprocess
    encoder.preprocess = lambda texts, **settings: preprocess(texts, **settings) | {"pixels": torch.zeros(7, 7, 7)}
    with pytest.raises(ValueError, match=r"reads \['pixels'\] of a text.*frozen"):
        TrainedTexts(AlignmentConfig(), encoder, DistinctTexts.of(CATALOGUE), 4000)


def test_texts_of_a_stored_catalogue_come_once_and_file_by_file(tmp_path):
    titles = [["a", "b", "a"], ["c", None], ["b", "d", "a"]]
    storage, index = open_storage(str(tmp_path)), 1
    with writing(storage, "items", "by hand") as out:
        for number, part in enumerate(titles):
            numbers = np.arange(index, index + len(part))
            columns = {"title": part, "description": ["long"] * len(part), "item_index": numbers.astype(np.int32)}
            columns |= {
                "text_hash": [f"hash of {title}" for title in part],
                "interactions": numbers,
                "popularity": numbers,
            }
            columns |= {"item_id": [str(number) for number in numbers]}
            blank = {field.name: pa.nulls(len(part), field.type) for field in items.SCHEMA}
            out.table(number, items.SCHEMA, pa.table(blank | columns).cast(items.SCHEMA))
            index += len(part)
    found = DistinctTexts.read(storage)
    parts = [part.to_pylist() for part in found.parts]
    assert [len(part) for part in parts if part] == [1, 2, 2, 1]
    texts = pa.array([text for part in parts for text in part])
    assert texts.take(pa.array(found.text_N)).to_pylist() == Catalogue.read(storage, texts=True).texts.to_pylist()


@pytest.mark.parametrize("max_padding", [0, 0.1, 0.9])
def test_a_text_is_read_once_and_little_is_padded(folder, max_padding):
    texts = trained(folder, max_padding=max_padding, texts_per_pass=64)
    texts(np.arange(1, 41, dtype=np.int32).repeat(2))
    once = np.unique(texts.text_N[1:])
    assert len(once) == len(set(TEXTS)) and texts.read == texts.lengths[once].sum()
    assert texts.padded >= texts.read >= (1 - max_padding) * texts.padded
    in_one_pass = texts.lengths.max() * len(once)
    assert texts.padded == (in_one_pass if texts.pads and max_padding == 0.9 else pytest.approx(texts.read, rel=0.1))


def test_gradients_are_those_of_one_pass_over_every_row(folder):
    encoder = load_encoder(TextConfig(model=str(folder)))
    rows = encoder(encoder.preprocess([CATALOGUE[item].as_py() for item in ITEMS.tolist()]))["sentence_embedding"]
    rows.square().sum(1).pow(2).sum().backward()
    expected = {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}
    for checkpointing in (False, True):
        texts = trained(folder, gradient_checkpointing=checkpointing)
        texts(ITEMS).square().sum(1).pow(2).sum().backward()
        make_dense(texts.parameters())
        found = {name: weight.grad for name, weight in texts.encoder.named_parameters() if weight.grad is not None}
        assert found.keys() == expected.keys() and expected
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_share_the_rows_by_texts_and_tokens(folder, world, monkeypatch):
    texts, items, shares = trained(folder), np.arange(1, 41, dtype=np.int32).repeat(2), []
    for rank in range(world):
        monkeypatch.setattr(module, "rank_and_world_size", lambda rank=rank: (rank, world))
        shares.append(texts.own(items))
    assert sorted(np.concatenate(shares)) == list(range(80))
    read = [np.unique(texts.text_N[items[share]]) for share in shares]
    assert sum(len(mine) for mine in read) == len(set(TEXTS))
    tokens = [texts.lengths[mine].sum() for mine in read]
    assert max(tokens) - min(tokens) <= texts.lengths.max()


def test_a_worker_without_rows_has_none(folder):
    texts = trained(folder)
    assert texts(ITEMS[:0]).shape == (0, texts(ITEMS).shape[1])
