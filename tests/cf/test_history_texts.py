"""CTRL's texts: the newest title first, what is too old left out, embedded as the encoder embeds any text."""

import pyarrow as pa

from allmrec.cf.history_texts import HistoryTexts
from allmrec.text.encoder import TextConfig, load_encoder
from tests.cf.conftest import ragged
from tests.text.tiny import DIM, build_tiny_sbert

TITLES = pa.array(["", "Alpha", "Beta | Two", "Gamma"], pa.large_string())


def test_the_newest_title_comes_first():
    texts = HistoryTexts(TITLES, "watched", 2, TextConfig()).texts(ragged([[1, 2, 3], [1], [3, 1]]))
    assert texts.to_pylist() == [
        "A user who has recently watched Gamma|Beta | Two",
        "A user who has recently watched Alpha",
        "A user who has recently watched Alpha|Gamma",
    ]


def test_they_are_embedded_in_the_order_of_the_users(tmp_path):
    build_tiny_sbert(["A user who has recently watched Alpha Beta Two Gamma"], tmp_path / "sbert")
    config = TextConfig(model=str(tmp_path / "sbert"))
    make, users = HistoryTexts(TITLES, "watched", 5, config), ragged([[1, 2, 3], [1], [3, 1]])
    vectors_US = make(users)
    expected = load_encoder(config).encode(make.texts(users).to_pylist())
    assert vectors_US.shape == (3, DIM) and abs(vectors_US - expected).max() < 1e-5
    assert make(ragged([])).shape == (0, DIM)
