"""The stand-in encoder: a SentenceTransformer like any other, with a sense for words that keep company."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from allmrec.data.catalogue import item_texts
from allmrec.demo.encoder import build_encoder
from allmrec.demo.sample.shop import LatentItems, SampleConfig, draw_latent_items
from allmrec.demo.sample.titles import items_table
from allmrec.text.encoder import TextConfig, load_encoder

CONFIG = SampleConfig(items=400)


@pytest.fixture(scope="module")
def latent() -> LatentItems:
    return draw_latent_items(CONFIG, "movies")


@pytest.fixture(scope="module")
def texts(latent) -> pa.Array:
    table = items_table(CONFIG, "movies", latent)
    return item_texts(table["title"], table["description"]).combine_chunks()


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    build_encoder(texts, folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(TextConfig(model=str(folder)))


def test_related_items_are_nearer(encoder, texts, latent):
    embeddings_ND = encoder.encode(texts.to_pylist())
    assert embeddings_ND.shape == (400, 64)
    similarity_NN = embeddings_ND @ embeddings_ND.T
    same_franchise = latent.franchise[:, None] == latent.franchise
    same_genre = latent.genre[:, None] == latent.genre
    of_franchise = similarity_NN[same_franchise & ~np.eye(400, dtype=bool)].mean()
    of_genre = similarity_NN[same_genre & ~same_franchise].mean()
    assert of_franchise > of_genre + 0.3
    assert of_genre > similarity_NN[~same_genre].mean() + 0.1
    np.fill_diagonal(similarity_NN, -2)
    assert (latent.genre[similarity_NN.argmax(axis=1)] == latent.genre).mean() > 0.95


def test_same_texts_same_files(texts, folder, tmp_path):
    build_encoder(texts, tmp_path / "again")
    build_encoder(texts, tmp_path / "other", seed=1)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert Path("modules.json") in files
    assert all(path.suffix in (".json", ".safetensors") for path in files)
    assert all((folder / path).read_bytes() == (tmp_path / "again" / path).read_bytes() for path in files)
    assert (folder / "model.safetensors").read_bytes() != (tmp_path / "other/model.safetensors").read_bytes()


@pytest.mark.parametrize("text", ["", " ", "</s>[HistoryEmb]", "\u202e☃\x00", "zzyzx " * 3000, "unheard-of: quix"])
def test_any_text_has_a_finite_embedding(encoder, text):
    assert np.isfinite(encoder.encode(text)).all()


def test_unknown_words_differ(encoder):
    one, other = encoder.encode(["Title: Xylograph, Description: ", "Title: Quixotry, Description: "])
    assert one @ other < 0.95


def test_its_parameters_take_gradients(encoder):
    features = encoder.preprocess(["Title: Moonfall, Description: an epic fantasy film"])
    encoder(features)["sentence_embedding"].sum().backward()
    (weights,) = encoder.parameters()
    assert weights.grad.abs().sum() > 0


def test_a_tiny_catalogue_will_do(tmp_path):
    build_encoder(pa.array(["Title: untitled item, Description: "]), tmp_path)
    assert np.isfinite(load_encoder(TextConfig(model=str(tmp_path))).encode("Title: one, Description: two")).all()
