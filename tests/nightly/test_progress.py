"""Notes of what was done last, and the diagnosis that is made of them."""

import os
from pathlib import Path

from allmrec.core.storage import open_storage
from allmrec.nightly.progress import diagnosis, note
from allmrec.publishing.run import Run
from tests.nightly.conftest import DAY, Shop


def test_unfinished_shards_are_told_with_who_was_at_what(shop: Shop, tmp_path: Path) -> None:
    run = Run.open(open_storage(str(tmp_path)), DAY, {"bundle": "v1"})
    for doing in ("retrieve", "rank"):
        note(run, 0, doing)
        note(run, 1, doing)
    run.commit_shard(0, shop.table(0, run.run_id))
    told = diagnosis(run, range(3))
    assert told.startswith("2 shards are unfinished (shard 1: process ") and told.endswith("; 1 were not begun)")
    assert f"process {os.getpid()} on " in told and "at 'rank' since 20" in told
