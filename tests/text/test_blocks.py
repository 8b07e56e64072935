"""What the workers of `embed` do, without Ray: blocks of texts into the cache, shards of items out of it."""

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.artifacts import read_manifest, read_table, shard_name, writing
from allmrec.core.hashing import hash_strings
from allmrec.core.storage import open_storage
from allmrec.demo.encoder import build_encoder
from allmrec.text.blocks import EmbedTexts, WriteItemEmbeddings
from allmrec.text.cache import TextCache
from allmrec.text.encoder import TextConfig, load_encoder
from allmrec.text.items import ItemTexts
from allmrec.text.plan import NumberTexts, make_plan
from schemas import items

TEXTS = ["a dragon", "a coach and a dragon", "nothing of this"]


READ = [f"Title: {title}, Description: " for title in TEXTS]


def item_texts(root, *numbers):
    """Three items with these of the TEXTS, in two files."""
    storage = open_storage(str(root / "items"))
    columns = {"item_id": ["i0", "i1", "i2"], "title": [TEXTS[number] for number in numbers], "item_index": [1, 2, 3]}
    columns |= {"text_hash": [f"h{number}" for number in numbers], "popularity": [0] * 3, "interactions": [0] * 3}
    empty = {name: pa.nulls(3) for name in items.SCHEMA.names if name not in columns}
    with writing(storage, "items", "test") as out:
        out.table(0, items.SCHEMA, pa.table(columns | empty)[:2])
        out.table(1, items.SCHEMA, pa.table(columns | empty)[2:])
    return ItemTexts(storage, read_manifest(storage))


def planned(root, texts, cache):
    """The plan of these texts, whose files are numbered."""
    drafts = open_storage(str(root / "drafts"))
    reports = [NumberTexts(texts, drafts).process(file) for file in range(2)]
    assert [report.counts for report in reports] == [
        {"items": 2, "untitled": 0, "undescribed": 2},
        {"items": 1, "untitled": 0, "undescribed": 1},
    ]
    return make_plan(drafts, 2, cache, 4, 1)


@pytest.fixture
def made(tmp_path):
    """A cache that holds the texts of three items under the hashes h0, h1, h2, and the folder of the encoder."""
    build_encoder(pa.array(TEXTS), tmp_path / "model")
    cache = TextCache.of(open_storage(str(tmp_path)), "standin")
    texts = item_texts(tmp_path, 0, 1, 2)
    plan = planned(tmp_path, texts, cache)
    assert (plan.missing, plan.texts, plan.blocks, plan.tasks, plan.shards) == (3, 3, 1, 1, 0)
    embed = EmbedTexts(TextConfig(model=str(tmp_path / "model")), "cpu", 1, texts, plan, cache, "standin")
    (done,) = embed({"id": [0]})
    assert done["texts"].to_pylist() == [3] and done["started"][0].as_py() <= done["ended"][0].as_py()
    return cache, tmp_path / "model"


def test_items_of_a_shard_get_their_texts_embeddings_and_stay_until_something_changes(made, tmp_path):
    cache, model = made
    target = open_storage(str(tmp_path / "table"))

    def write_item_embeddings(*numbers: int, before=None) -> dict:
        texts = item_texts(tmp_path, *numbers)
        plan = planned(tmp_path, texts, cache)
        assert (plan.missing, plan.blocks, plan.shards) == (0, 0, 1)
        (table,) = WriteItemEmbeddings(texts, plan, cache, target, before, "standin")({"id": [0]})
        (done,) = table.to_pylist()
        assert done["name"] == shard_name(0)
        return done

    first = write_item_embeddings(2, 0, 2)
    assert not first["unchanged"]
    with writing(target, "item_text_embeddings", "test") as out:
        out.add({shard_name(0): first["entry"]})
    table, expected = read_table(target), load_encoder(TextConfig(model=str(model))).encode(READ)
    assert table["item_id"].to_pylist() == ["i0", "i1", "i2"] and set(table["encoder"].to_pylist()) == {"standin"}
    assert np.allclose(np.array(table["embedding"].to_pylist()), expected[[2, 0, 2]], atol=1e-6)

    before = read_manifest(target)
    assert write_item_embeddings(2, 0, 2, before=before) == first | {"unchanged": True}
    assert not write_item_embeddings(2, 1, 2, before=before)["unchanged"]
    assert not write_item_embeddings(2, 0, 2, before=before)["unchanged"]  # the file is another one by now
    target.delete(shard_name(0))
    assert not write_item_embeddings(2, 0, 2, before=before)["unchanged"]


def test_texts_are_read_from_the_files_that_have_them_in_the_order_asked_for(tmp_path):
    texts = item_texts(tmp_path, 0, 1, 2)
    assert texts.texts(np.array([2, 0, 1])).to_pylist() == [
        {"item_id": f"i{number}", "text_hash": f"h{number}", "text": READ[number]} for number in (2, 0, 1)
    ]
    assert texts.numbers(1).to_pylist() == [
        {
            "key": int(hash_strings(pa.array(["h2"]))[0]),
            "length": len(READ[2]),
            "untitled": False,
            "undescribed": True,
        }
    ]
