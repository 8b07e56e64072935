"""What the workers of `embed` do, without Ray: blocks of texts into the cache, shards of items out of it."""

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.artifacts import read_manifest, read_table, shard_name, writing
from allmrec.core.storage import open_storage
from allmrec.demo.encoder import build_encoder
from allmrec.text.blocks import EmbedTexts, WriteItemEmbeddings
from allmrec.text.cache import TextCache
from allmrec.text.encoder import TextConfig, load_encoder

TEXTS = ["a dragon", "a coach and a dragon", "nothing of this"]


@pytest.fixture
def made(tmp_path):
    """A cache that holds TEXTS under the hashes h0, h1, h2, and the folder of the encoder."""
    build_encoder(pa.array(TEXTS), tmp_path / "model")
    cache = TextCache.of(open_storage(str(tmp_path)), "standin")
    embed = EmbedTexts(TextConfig(model=str(tmp_path / "model")), "cpu", 1, cache, "standin")
    hashes = [f"h{number}" for number in range(3)]
    done = embed(pa.table({"item_id": hashes, "text_hash": hashes, "text": TEXTS}))
    assert done["texts"].to_pylist() == [3] and done["started"][0].as_py() <= done["ended"][0].as_py()
    return cache, tmp_path / "model"


def test_items_of_a_shard_get_their_texts_embeddings_and_stay_until_something_changes(made, tmp_path):
    cache, model = made
    target, index = open_storage(str(tmp_path / "table")), cache.index()

    def write_item_embeddings(*numbers: int, before=None) -> dict:
        hashes = pa.chunked_array([[f"h{number}" for number in numbers]])
        file, row = index.find(hashes)
        ids = [f"i{place}" for place in range(len(numbers))]
        block = pa.table({"item_id": ids, "text_hash": hashes, "file": file, "row": row, "shard": [4] * len(numbers)})
        (done,) = WriteItemEmbeddings(target, before, cache, index.files, "standin")(block).to_pylist()
        assert done["name"] == shard_name(4)
        return done

    first = write_item_embeddings(2, 0, 2)
    assert not first["unchanged"]
    with writing(target, "item_text_embeddings", "test") as out:
        out.add({shard_name(4): first["entry"]})
    table, expected = read_table(target), load_encoder(TextConfig(model=str(model))).encode(TEXTS)
    assert table["item_id"].to_pylist() == ["i0", "i1", "i2"] and set(table["encoder"].to_pylist()) == {"standin"}
    assert np.allclose(np.array(table["embedding"].to_pylist()), expected[[2, 0, 2]], atol=1e-6)

    before = read_manifest(target)
    assert write_item_embeddings(2, 0, 2, before=before) == first | {"unchanged": True}
    assert not write_item_embeddings(2, 1, 2, before=before)["unchanged"]
    assert not write_item_embeddings(2, 0, 2, before=before)["unchanged"]  # the file is another one by now
    target.delete(shard_name(4))
    assert not write_item_embeddings(2, 0, 2, before=before)["unchanged"]
