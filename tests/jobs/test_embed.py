"""`embed` with the stand-in encoder: what is known is not encoded again, and NaN is never published."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from allmrec.core.artifacts import Manifest, read_manifest, read_table, sha256, shard_name, writing
from allmrec.core.storage import Storage, open_storage
from allmrec.data.catalogue import item_texts
from allmrec.text import plan
from allmrec.text.cache import TextCache
from allmrec.text.encoder import encoder_identity
from jobs import embed
from jobs.config import Config
from jobs.demo import standin_encoder
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from schemas import items
from tests.jobs.in_process import driver_reads_no_table, jobs_in_process

TITLES = ["Moonfall Saga: The Last Dragon", "Moonfall Saga II", "Ironcrest Derby: The Final Coach", None]
DESCRIPTIONS = ["An epic fantasy film.", "An enchanted fantasy film.", "A rousing sports film.", None]


def config_in(root: Path, model: Path) -> Config:
    return Config(
        name="run",
        root=str(root),
        workers={"num_workers": 1},  # type: ignore[arg-type]
        text={"model": str(model)},  # type: ignore[arg-type]
    )


def embeddings_of(config: Config) -> Storage:
    return open_storage(config.workspace_uri).at("item_text_embeddings")


def manifest_of(config: Config) -> Manifest:
    return read_manifest(embeddings_of(config))


def drafts_of(config: Config) -> list[str]:
    return [entry.key for entry in open_storage(config.workspace_uri).list("drafts/")]


def write_items(config: Config, titles: list[str | None], filtered_out: tuple[int, ...] = ()) -> None:
    """The `items` artifact: item i4 has the text of i1, i3 has none."""
    titles, descriptions = [*titles, titles[1]], [*DESCRIPTIONS, DESCRIPTIONS[1]]
    texts = item_texts(pa.chunked_array([titles], pa.string()), pa.chunked_array([descriptions], pa.string()))
    table = pa.table(
        {
            "item_id": [f"i{index}" for index in range(5)],
            "title": titles,
            "description": descriptions,
            "categories": pa.nulls(5, pa.list_(pa.string())),
            "available": pa.nulls(5, pa.bool_()),
            "item_index": pa.array(range(1, 6), pa.int32()),
            "popularity": [3, 2, 1, 0, 0],
            "interactions": [3, 2, 1, 0, 0],
            "text_hash": [sha256(text.encode()) for text in texts.to_pylist()],
        }
    )
    table = table.take([row for row in range(5) if row not in filtered_out])
    storage = open_storage(config.workspace_uri).at("items")
    with writing(storage, "items", "test") as out:
        out.table(0, items.SCHEMA, table)


pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    """A root with a run whose items are embedded."""
    root = tmp_path_factory.mktemp("root")
    config = config_in(root, root / "run/models/encoder")
    write_items(config, TITLES)
    execute(standin_encoder.STEP, config, Console())
    with jobs_in_process(), driver_reads_no_table():
        assert execute(embed.STEP, config, Console())
    return root


@pytest.fixture
def config(embedded, tmp_path) -> Config:
    """A run of the test's own, its items embedded."""
    shutil.copytree(embedded, tmp_path, dirs_exist_ok=True)
    return config_in(tmp_path, embedded / "run/models/encoder")


def test_every_item_is_embedded(config):
    stats, table = manifest_of(config).stats, read_table(embeddings_of(config))
    assert (stats["items"], stats["embedded"], stats["reused"]) == (5, 5, 0)
    assert (stats["untitled"], stats["undescribed"]) == (1, 1)
    assert table["item_id"].to_pylist() == [f"i{index}" for index in range(5)]
    vectors = np.array(table["embedding"].to_pylist())
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert vectors[1].tolist() == vectors[4].tolist()  # one text
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert not drafts_of(config)


def test_nothing_is_encoded_twice(config):
    digest = manifest_of(config).digest
    assert not execute(embed.STEP, config, Console())
    assert execute(embed.STEP, config, Console(), force=True)
    assert (manifest_of(config).stats["embedded"], manifest_of(config).stats["reused"]) == (0, 5)
    assert manifest_of(config).digest == digest


def test_a_changed_title_encodes_that_item_only(config):
    before = read_table(embeddings_of(config))
    write_items(config, ["Moonfall Saga: The Final Coach", *TITLES[1:]])
    assert execute(embed.STEP, config, Console())
    after = read_table(embeddings_of(config))
    assert (manifest_of(config).stats["embedded"], manifest_of(config).stats["reused"]) == (1, 4)
    assert after[1:].equals(before[1:])
    assert after["embedding"][0] != before["embedding"][0]


def test_nan_names_the_item_and_leaves_the_old_embeddings(config, tmp_path):
    digest = manifest_of(config).digest
    corrupted = config_in(tmp_path, tmp_path / "run/models/encoder")
    weights = f"{corrupted.text.model}/model.safetensors"
    save_file({"embedding.weight": torch.full_like(load_file(weights)["embedding.weight"], torch.nan)}, weights)
    with pytest.raises(ValueError, match=r"NaN or infinity for item 'i\d' and 3 more"):
        execute(embed.STEP, corrupted, Console())
    assert manifest_of(config).digest == digest and not drafts_of(config)
    assert len(TextCache.of(open_storage(config.workspace_uri), encoder_identity(corrupted.text)).index().keys) == 0


def test_what_is_damaged_is_made_again_or_named(config):
    storage, table = embeddings_of(config), read_table(embeddings_of(config))
    storage.write(shard_name(0), b"damaged")
    assert execute(embed.STEP, config, Console(), force=True)
    assert manifest_of(config).stats["embedded"] == 0 and read_table(storage).equals(table)

    cache = TextCache.of(open_storage(config.workspace_uri), encoder_identity(config.text))
    (entry,) = cache.storage.list()
    cache.storage.write(entry.key, cache.storage.read(entry.key)[:-1] + b"?")  # a foot that no Parquet has
    assert execute(embed.STEP, config, Console(), force=True)
    assert manifest_of(config).stats["embedded"] == 5 and read_table(storage).equals(table)
    storage.delete(shard_name(0))
    data = cache.storage.read(entry.key)
    at = len(data) // 2  # among the embeddings
    cache.storage.write(entry.key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ValueError, match=f"{entry.key} is damaged; delete it"):
        execute(embed.STEP, config, Console(), force=True)


def test_items_appear_and_vanish(config, monkeypatch):
    monkeypatch.setattr(plan, "ITEMS_PER_SHARD", 2)
    assert execute(embed.STEP, config, Console(), force=True)
    before, files = read_table(embeddings_of(config)), manifest_of(config).files
    assert len(files) == 3 and manifest_of(config).stats["embedded"] == 0
    write_items(config, TITLES, filtered_out=(3, 4))
    assert execute(embed.STEP, config, Console())
    stats = manifest_of(config).stats
    assert (stats["items"], stats["embedded"], stats["shards unchanged"]) == (3, 0, 1)
    assert read_table(embeddings_of(config)).equals(before[:3])
    assert {entry.key for entry in embeddings_of(config).list()} == {"manifest.json", shard_name(0), shard_name(1)}
    write_items(config, TITLES)
    assert execute(embed.STEP, config, Console())
    assert manifest_of(config).stats["embedded"] == 0 and read_table(embeddings_of(config)).equals(before)


def test_another_encoder_has_a_cache_of_its_own(config, tmp_path):
    before, weights = read_table(embeddings_of(config)), tmp_path / "tuned/model.safetensors"
    shutil.copytree(config.text.model, tmp_path / "tuned")
    save_file({"embedding.weight": load_file(weights)["embedding.weight"].flip(0).contiguous()}, weights)  # fine-tuned
    tuned = config_in(tmp_path, tmp_path / "tuned")
    assert execute(embed.STEP, tuned, Console())
    assert manifest_of(config).stats["embedded"] == 5 and read_table(embeddings_of(config)) != before
    assert execute(embed.STEP, config, Console())  # and back
    assert manifest_of(config).stats["embedded"] == 0 and read_table(embeddings_of(config)).equals(before)


def test_a_model_that_is_not_there_is_one_line(config, tmp_path):
    other = config.model_copy(update={"text": config.text.model_copy(update={"model": str(tmp_path / "nowhere")})})
    with pytest.raises(ValueError, match=r"^text.model .*nowhere' cannot be loaded .*$"):
        execute(embed.STEP, other, Console())


def test_a_dry_run_counts_and_writes_nothing(config, capsys):
    shutil.rmtree(embeddings_of(config).uri)
    assert not execute(embed.STEP, config, Console(log_json=True), dry_run=True)
    printed = capsys.readouterr().out
    assert '"items": 5' in printed and '"embedded": 0' in printed
    assert not Path(embeddings_of(config).uri).exists()


def test_the_standin_is_the_same_each_time(config):
    storage = open_storage(config.workspace_uri).at("models/encoder")
    digest = read_manifest(storage).digest
    assert execute(standin_encoder.STEP, config, Console(), force=True)
    assert read_manifest(storage).digest == digest
