import numpy as np
import pytest

from allmrec.core.artifacts import Manifest, shard_name
from allmrec.core.shard_tasks import gather
from allmrec.data.config import DataConfig
from allmrec.data.prepare.clean import Cleaned, to_polars
from allmrec.data.prepare.histories import in_order
from allmrec.data.prepare.sequences import CountItems, filtered
from schemas import sequences
from tests.data.shop import EVENTS, EVERYTHING, ITEM_IDS, Shop, rows


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path)
    shop.update(Cleaned(rows(EVENTS, 2)))
    return shop


def test_histories_lose_interactions_and_users_who_have_none_left():
    table, _ = in_order(to_polars(rows(EVENTS)), ITEM_IDS)
    kept = filtered(table, DataConfig(), np.isin(np.arange(10), [0, 3, 5, 2]))
    assert [(row["user_id"], row["item_index"]) for row in kept.to_pylist()] == [("ann", [3, 3]), ("bob", [5, 2])]
    assert [stamp.hour for stamp in kept.to_pylist()[0]["timestamp"]] == [1, 5]
    assert filtered(table, DataConfig(), np.zeros(10, dtype=bool)).equals(sequences.HISTORY.empty_table())
    assert filtered(table, DataConfig(), EVERYTHING.mask()).equals(table)
    assert filtered(table.slice(0, 0), DataConfig(), EVERYTHING.mask()).num_rows == 0


@pytest.mark.parametrize(
    ("least", "counts"), [(1, [0, 1, 1, 2, 1, 1, 0, 1, 0, 1]), (2, [0, 1, 1, 2, 0, 1, 0, 1, 0, 1])]
)
def test_items_are_counted_in_histories_that_are_long_enough(shop, least, counts):
    found = shop.run(CountItems(shop.histories, DataConfig(), EVERYTHING, least))
    assert gather(found)[1].item_counts["kept"].tolist() == counts


def test_shards_are_finished(shop):
    built = shop.build_sequences()
    assert built[0].counts == {"users": 2, "interactions": 7, "valid": 2, "test": 2}
    assert {entry.key for entry in shop.storage.at("sequences").list()} == {shard_name(0), shard_name(1)}
    counted = gather(built)[1].item_counts
    assert counted["interactions"].tolist() == [0, 1, 1, 2, 1, 1, 0, 1, 0, 1]
    assert counted["popularity"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1]  # without the last two of ann and bob


def test_a_file_that_would_not_change_is_left_alone(shop):
    entries = gather(shop.build_sequences())[1].files
    paths = [shop.storage.root / "sequences" / shard_name(shard) for shard in (0, 1)]
    before = [path.stat().st_ino for path in paths]  # a write puts another file in its place
    shop.build_sequences(before=Manifest("sequences", "", entries), min_user_interactions=2)
    assert [path.stat().st_ino != inode for path, inode in zip(paths, before, strict=True)] == [False, True]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"not what it was")])
def test_a_damaged_file_is_written_again(shop, damage):
    entries = gather(shop.build_sequences())[1].files
    path = shop.storage.root / "sequences" / shard_name(0)
    whole = path.read_bytes()
    damage(path)
    shop.build_sequences(before=Manifest("sequences", "", entries))
    assert path.read_bytes() == whole


def test_an_empty_shard(tmp_path):
    shop = Shop(tmp_path)
    shop.update(Cleaned(rows([("ann", 1, 1)], 2)))
    assert [report.counts["users"] for report in shop.build_sequences()] == [1, 0]
