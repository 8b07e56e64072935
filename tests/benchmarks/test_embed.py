"""The benchmark of `embed`: its catalogue, its check, and the whole command."""

import json

import numpy as np
import pyarrow.compute as pc
import pytest
import typer
from typer.testing import CliRunner

from allmrec.demo.encoder import build_encoder
from allmrec.text.encoder import TextConfig
from benchmarks.embed import catalogue, in_process, main, refuse_difference


def test_texts_are_the_same_each_time_and_of_many_lengths():
    shop = catalogue(300)
    assert shop.equals(catalogue(300)) and not shop.equals(catalogue(300, seed=1))
    assert len(shop["item_id"].unique()) == 300
    lengths = pc.utf8_length(shop["description"]).to_numpy()
    assert lengths.max() > 5 * np.median(lengths) > 10 * 20


def test_the_encoder_alone_and_the_check(tmp_path):
    texts = catalogue(40)["description"].combine_chunks()
    build_encoder(texts, tmp_path)
    seconds, embeddings_ND = in_process(TextConfig(model=str(tmp_path), max_chars=50), texts.to_pylist(), 1)
    assert seconds > 0 and embeddings_ND.shape == (40, 64)
    refuse_difference(embeddings_ND, embeddings_ND + 1e-6)
    with pytest.raises(ValueError, match="differ by up to"):
        refuse_difference(embeddings_ND, np.roll(embeddings_ND, 1, axis=0))


@pytest.mark.benchmark
def test_quick(tmp_path):
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--quick", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "embed.json").read_text())
    assert [row["embedded"] for row in content["measurements"]] == [600, 600, 6]
    assert all(row["items/s"] > 0 for row in content["measurements"])
    assert [bar["holds"] for bar in content["bars"]] == [None] * 2
