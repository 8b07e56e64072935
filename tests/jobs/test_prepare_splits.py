"""`prepare` with splits other than the paper's: what is held out does not train, whatever the shards."""

import numpy as np
import pytest

from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.storage import Storage, open_storage
from allmrec.data.sequences import Sequences
from jobs.config import Config
from jobs.prepare import STEP
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.jobs.test_prepare import SHOP, config_of, log, write_parquet

ORDER = [(column, "ascending") for column in ("user_id", "split", "protocol")]
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("in_process")]

SPLITS = {
    "temporal": {"valid_from": "2017-07-28", "test_from": "2017-08-06"},
    "cold-users": {},
    "few-shot": {"users": 7},
    "cross-domain": {"trained_in": "runs/elsewhere"},
}


def prepared(root, shards: int, kind: str, **more) -> Storage:
    log_path = write_parquet(root / "in" / "log.parquet", log(count=280))
    shop_path = write_parquet(root / "in" / "shop.parquet", SHOP)
    config = config_of(root / f"runs-{shards}", log_path, shop_path, num_shards=shards)
    settings = config.model_dump()
    settings["evaluation"]["split"] = {"kind": kind, **SPLITS.get(kind, {}), **more}
    settings["data"]["min_item_interactions"] = 8  # some of the 30 items go, and are drawn nowhere
    config = Config(**settings)
    execute(STEP, config, Console(log_json=True))
    return open_storage(config.workspace_uri)


@pytest.mark.parametrize("kind", SPLITS)
def test_what_is_held_out_does_not_train(kind, tmp_path):
    run, other = prepared(tmp_path, 3, kind), prepared(tmp_path, 1, kind)
    rows = {row["user_id"]: row for row in read_table(run.at("sequences")).to_pylist()}
    train = Sequences.read_train(run.at("sequences"))
    table = read_table(run.at("evaluation_cases")).sort_by(ORDER)
    cases = table.to_pylist()
    for case in cases:
        user = rows[case["user_id"]]
        assert user["train_length"] <= case["history_length"] > 0
        assert user["item_index"][case["history_length"]] == case["target"]
    tested = {case["user_id"] for case in cases if case["split"] == "test"}
    assert read_manifest(run.at("evaluation_cases")).stats["test"] == len(tested) > 0
    if kind == "temporal":
        before = max(row["timestamp"][row["train_length"] - 1] for row in rows.values() if row["train_length"])
        assert before.isoformat() < "2017-07-28" and len(tested) < len(rows)
    elif kind == "cold-users":
        assert {len(rows[user]["item_index"]) for user in tested} == {3}
        assert not tested & set(train.user_ids.to_pylist())
    else:
        assert len(train) == (7 if kind == "few-shot" else 0)
        assert tested == {user for user, row in rows.items() if len(row["item_index"]) >= 3}
    popularity = read_table(run.at("items")).column("popularity").to_pylist()
    assert popularity == np.bincount(train.items, minlength=31)[1:].tolist()
    kept = {item for row in rows.values() for item in row["item_index"]}
    assert {item for case in cases for item in case["candidates"]} - {0} <= kept < set(range(1, 31))
    matched = kind != "cross-domain"
    assert {case["protocol"] for case in cases} == ({"random", "matched"} if matched else {"random"})

    again = read_table(other.at("evaluation_cases")).sort_by(ORDER)
    assert again.equals(table)
    lengths = {row["user_id"]: row["train_length"] for row in read_table(other.at("sequences")).to_pylist()}
    assert lengths == {user: row["train_length"] for user, row in rows.items()}


def test_histories_that_train_are_shuffled_and_nothing_else(tmp_path):
    plain, shuffled = (prepared(tmp_path / str(how), 3, "leave-one-out", shuffle_training=how) for how in (False, True))
    true, drawn = (Sequences.read_train(run.at("sequences")) for run in (plain, shuffled))
    assert true.user_ids.equals(drawn.user_ids) and not np.array_equal(true.items, drawn.items)
    for row in range(len(true)):
        own, other = (users.items[users.offsets[row] : users.offsets[row + 1]].tolist() for users in (true, drawn))
        assert sorted(own) == sorted(other) and own[-1] == other[-1], "the last item to train on stays the last"
    for name in ("items", "evaluation_cases"):
        assert read_table(plain.at(name)).equals(read_table(shuffled.at(name)))
    whole, also = (read_table(run.at("sequences")) for run in (plain, shuffled))
    assert also.select(whole.column_names).equals(whole), "histories of test cases are the true ones"
    digests = {read_manifest(run.at("sequences")).digest for run in (plain, shuffled)}
    assert len(digests) == 2, "so what was trained on the others is trained again"
