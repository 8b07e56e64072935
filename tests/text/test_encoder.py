"""The encoder of `map_batches`, and what an embedding's identity depends on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.core.storage import open_storage
from allmrec.demo.encoder import build_encoder
from allmrec.text.encoder import (
    TextConfig,
    TextEncoder,
    default_prompt,
    encoder_files,
    encoder_identity,
    load_encoder,
    refuse_not_finite,
)
from tests.text.tiny import build_tiny_sbert, change

TEXTS = ["Title: Moonfall Saga, Description: a dragon", "Title: Ironcrest, Description: a coach", "Title: Moonfall II"]


@pytest.fixture
def folder(tmp_path) -> Path:
    build_encoder(pa.array(TEXTS), tmp_path / "model")
    return tmp_path / "model"


def test_a_batch_keeps_its_columns_and_order(folder):
    batch = pa.table({"item_id": ["a", "b", "c"], "text": TEXTS})
    encoded = TextEncoder(TextConfig(model=str(folder), batch_size=2))(batch)
    assert encoded.select(["item_id", "text"]).equals(batch)
    assert encoded.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    alone = load_encoder(TextConfig(model=str(folder))).encode(TEXTS[2])
    assert np.allclose(encoded["embedding"][2].as_py(), alone, atol=1e-6)


def test_texts_are_cut(folder):
    batch = pa.table({"text": [TEXTS[0], TEXTS[0][:15]]})
    encoded = TextEncoder(TextConfig(model=str(folder), max_chars=15))(batch)["embedding"]
    assert encoded[0] == encoded[1]


def test_halves_come_back_as_float32(folder):
    encoded = TextEncoder(TextConfig(model=str(folder), dtype="bfloat16"))(pa.table({"text": TEXTS}))
    assert encoded.schema.field("embedding").type == pa.list_(pa.float32(), 64)


def test_weights_are_halves_on_gpus_unless_said_otherwise(folder):
    auto, whole = TextConfig(model=str(folder)), TextConfig(model=str(folder), dtype="float32")
    assert (auto.dtype_on("cuda"), auto.dtype_on("cpu"), whole.dtype_on("cuda")) == ("bfloat16", "float32", "float32")
    assert encoder_identity(auto) == encoder_identity(whole) != encoder_identity(auto, "cuda")
    assert next(load_encoder(auto).parameters()).dtype == torch.float32


def test_identity_is_the_content_of_a_folder(folder, tmp_path):
    before = encoder_identity(TextConfig(model=str(folder)))
    folder.rename(tmp_path / "moved")
    moved = TextConfig(model=str(tmp_path / "moved"))
    assert encoder_identity(moved).split("@")[1] == before.split("@")[1]
    (tmp_path / "moved/model.safetensors").write_bytes(b"other")
    assert encoder_identity(moved).split("@")[1] != before.split("@")[1]


def test_identity_of_a_hub_name_holds_its_revision():
    assert encoder_identity(TextConfig(model="org/name", revision="abc")).startswith("org/name@abc ")
    assert encoder_identity(TextConfig(model="org/name", max_chars=9)) != encoder_identity(TextConfig(model="org/name"))


def test_no_such_model_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="standins/encoder"):
        load_encoder(TextConfig(model=str(tmp_path / "nowhere")))


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="nothing pickled is read"):
        load_encoder(TextConfig(model=str(folder)))


@pytest.fixture
def transformer(tmp_path) -> Path:
    build_tiny_sbert(TEXTS, tmp_path / "sbert")
    return tmp_path / "sbert"


def test_a_transformer_embeds_a_text_alike_in_any_batch(transformer):
    encoder = TextEncoder(TextConfig(model=str(transformer), batch_size=2))
    texts = [*TEXTS, "Title: " + "long " * 40]
    together = np.array(encoder(pa.table({"text": texts}))["embedding"].to_pylist())
    assert together.shape == (4, 16)
    for text, embedding in zip(texts, together, strict=True):
        assert np.allclose(encoder(pa.table({"text": [text]}))["embedding"][0].as_py(), embedding, atol=1e-5)
    assert not np.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_names_the_item(bad):
    embeddings_ND = np.ones((4, 3), dtype=np.float32)
    refuse_not_finite(pa.chunked_array([["a", "b", "c", "d"]]), embeddings_ND, "sbert")
    embeddings_ND[2, 1] = bad
    with pytest.raises(ValueError, match="sbert gave NaN or infinity for item 'c'"):
        refuse_not_finite(pa.chunked_array([["a", "b", "c", "d"]]), embeddings_ND, "sbert")


def saved(encoder, folder):
    storage = open_storage(str(folder))
    for name, data in encoder_files(encoder).items():
        storage.write(f"tuned/{name}", data)
    return storage.name("tuned")


def test_a_saved_encoder_is_loaded_from_its_folder(folder, tmp_path):
    encoder = load_encoder(TextConfig(model=str(folder)))
    again = load_encoder(TextConfig(model=saved(encoder, tmp_path)))
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in tmp_path.rglob("*"))
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


def test_a_prompt_stands_before_every_text_and_in_the_identity(transformer):
    plain, behind = (TextConfig(model=str(transformer), prompt=prompt) for prompt in (None, "dragon: "))
    found = np.array(TextEncoder(behind)(pa.table({"text": TEXTS}))["embedding"].to_pylist())
    expected = load_encoder(plain).encode(["dragon: " + text for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    identities = {
        encoder_identity(TextConfig(model=str(transformer), prompt=prompt)) for prompt in (None, "", "a", "b")
    }
    assert len(identities) == 4 and encoder_identity(behind).startswith(encoder_identity(plain))


def test_a_tuned_encoder_keeps_its_prompt(transformer, tmp_path):
    encoder = load_encoder(TextConfig(model=str(transformer), prompt="dragon: "))
    assert default_prompt(load_encoder(TextConfig(model=saved(encoder, tmp_path)))) == "dragon: "


DAMAGES = {
    "a weight less": ("", {"encoder.layer.0.output.dense.weight": None}, "lacks 1 weights: .*output.dense.weight"),
    "another shape": (
        "",
        {"encoder.layer.0.output.dense.weight": torch.zeros(1, 32)},
        r"in another shape 1 weights: .*output.dense.weight \[1, 32\]",
    ),
    "a weight more": ("", {"encoder.adapter.weight": torch.zeros(2)}, "has besides 1 weights: encoder.adapter.weight"),
    "a dense layer without bias": ("2_Dense", {"linear.bias": None}, "not a complete encoder.*linear.bias"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_encoder_that_is_not_complete_is_refused(transformer, damage):
    module, tensors, message = DAMAGES[damage]
    change(transformer / module, **tensors)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_encoder(TextConfig(model=str(transformer)))


def test_heads_buffers_and_an_unused_pooler_are_no_loss(transformer):
    before = load_encoder(TextConfig(model=str(transformer))).encode(TEXTS)
    change(
        transformer,
        **{"cls.predictions.bias": torch.zeros(3), "embeddings.position_ids": torch.arange(9)},
        **{"pooler.dense.weight": None, "pooler.dense.bias": None},
    )
    np.testing.assert_array_equal(load_encoder(TextConfig(model=str(transformer))).encode(TEXTS), before)
