"""A season of nights, one command each: users, items and events come and go, things fail, people mend them.

ALLMREC_SEASON=60 ALLMREC_NIGHT_USERS=400 pytest -m faults -s tests/faults/test_sixty_nights.py

Beside the deployment that is disturbed, another one of the same shop is not: each date must be the same in both.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.bundle.versions import bundle_versions, latest_bundle
from allmrec.core.commit_log import entries_after, load_json
from allmrec.core.storage import S3Config
from allmrec.data.prepare import incremental
from allmrec.nightly import inputs, report
from allmrec.publishing.lease import Lease
from allmrec.publishing.log import manifest_key, published_dates
from allmrec.publishing.reader import read_recommendations, verify_run
from jobs import prepare
from jobs.expire import expired
from jobs.runtime.console import Bar, Console
from tests.jobs.deployment import FIRST, Deployment, GrowingShop, events, failure
from tests.jobs.in_process import jobs_in_process
from tests.s3_fixtures import Proxy, new_bucket, proxied

pytestmark = [pytest.mark.faults, pytest.mark.timeout(7200)]

NIGHTS = int(os.environ.get("ALLMREC_SEASON", "10"))
USERS = int(os.environ.get("ALLMREC_NIGHT_USERS", "40"))
EVERY = max(NIGHTS // 6, 2)  # nights from one fault to the next; ten of sixty
DAYS_OF_LOG, KEPT_RUNS, KEPT_BUNDLES = 7, 4, 2
RETENTION = {"runs": KEPT_RUNS, "bundles": KEPT_BUNDLES, "trials": 1, "text_cache": "current", "checkpoint_days": 1}


class Store(Proxy):
    """Refuses writes to keys that contain `refused`."""

    refused: str | None = None

    def do_PUT(self) -> None:
        if self.refused and self.refused in self.path:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.forward()


class PoweredOff(BaseException):
    """The host of the driver is gone: nothing tidies up."""


@dataclass
class Season:
    """The shop and its two deployments, and what has happened to them."""

    shop: GrowingShop
    disturbed: Deployment
    calm: Deployment
    patch: pytest.MonkeyPatch
    excluded: list[str] = field(default_factory=list)

    def run(self, number: int, fault: "Callable[[Season, int, date], None] | None") -> float:
        """A night with all that changes until then; returns its seconds without faults."""
        day = FIRST + timedelta(number)
        self.shop.write_day(number)
        if number >= DAYS_OF_LOG:
            self.shop.day(number - DAYS_OF_LOG).unlink()
        if number % 3 == 2:
            self.excluded.append(f"user-{number}")
            self.shop.exclude(*self.excluded)
        # Every second night brings an item; one is sold out for a night, two leave the catalogue for a night, and every
        # fifth night one does so for good. Their events stay, however much of the log is read: files leave it, too.
        gone = [number % 10, number % 10 + 1, *range(10, 10 + number // 5)] if number else []
        self.shop.write_items(number // 2, gone=gone, unavailable=[25 + number % 10])
        if fault:
            fault(self, number, day)
        events(self.disturbed.daily(day))
        began = time.monotonic()
        events(self.calm.daily(day))
        seconds = time.monotonic() - began
        self.compare(day)
        return seconds

    def compare(self, day: date) -> None:
        """Scores of rows that were reused were ranked in other batches."""
        left, right = (
            read_recommendations(one.output.uri, day, one.config.storage) for one in (self.disturbed, self.calm)
        )
        entries = [table.column("items").combine_chunks().flatten() for table in (left, right)]
        assert left.num_rows > USERS / 3
        assert left.select(["user_id", "source"]).equals(right.select(["user_id", "source"]))
        assert entries[0].field("item_id").equals(entries[1].field("item_id"))
        scores = [some.field("score").to_numpy() for some in entries]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def store_refuses(season: Season, number: int, day: date) -> None:
    for refused in ("shards/part-00001", "_SUCCESS"):
        Store.refused = refused
        assert season.disturbed.daily(day).exit_code != 0
    Store.refused = None


def gate(season: Season, number: int, day: date) -> None:
    """Only few users are listed, by mistake; the gate stops it, and the list is taken out again."""
    listed = season.shop.folder / "few.parquet"
    pq.write_table(pa.table({"user_id": ["user-1", "user-2"]}), listed)
    failed = season.disturbed.daily(day, nightly__users={"paths": [str(listed)]})
    assert "users_change" in failure(failed)


def bad_file(season: Season, number: int, day: date) -> None:
    rows = pq.read_table(season.shop.day(number))
    nameless = rows.set_column(0, "user_id", pa.nulls(len(rows), pa.string()))
    pq.write_table(pa.concat_tables([rows, nameless, nameless]), season.shop.day(number))
    failed = season.disturbed.daily(day)
    assert "rows were rejected" in failure(failed)
    season.shop.write_day(number)


def new_code(season: Season, number: int, day: date) -> None:
    """The night is begun by one release, and continued by the next one, which prepares and ranks in another way."""
    host_off(season, number, day)
    season.patch.setattr(prepare, "STEP", replace(prepare.STEP, algorithm=prepare.STEP.algorithm + 1))
    for module in (incremental, inputs):
        season.patch.setattr(module, "ALGORITHM", module.ALGORITHM + 1)


def rollback(season: Season, number: int, day: date) -> None:
    """A wrong config is published; people go back a day, and make the date again."""
    events(season.disturbed.daily(day, nightly__top_k=2))
    events(season.disturbed.call("recommendations", "rollback", "--date", str(day - timedelta(1))))
    assert events(season.disturbed.daily(day))[0]["event"] == "skip", "a retry does not undo the rollback"
    events(season.disturbed.daily(day, "--replace"))


def host_off(season: Season, number: int, day: date) -> None:
    """The driver's host loses its power after the first shard: it releases nothing."""
    advance = Bar.advance

    def dies(bar: Bar, *counts: int, **numbers: Any) -> None:
        advance(bar, *counts, **numbers)
        if bar.title == "score":
            raise PoweredOff

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PoweredOff):
        patch.setattr(Bar, "advance", dies)
        patch.setattr(Lease, "release", Lease.stop)
        season.disturbed.daily(day)


FAULTS = (store_refuses, gate, bad_file, new_code, rollback, host_off)


@pytest.fixture
def season(tmp_path: Path, s3: S3Config, tiny_llm, tiny_tokenizer) -> Iterator[Season]:
    shop = GrowingShop(tmp_path, USERS)
    with proxied(s3, Store) as store, jobs_in_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_plots", lambda figures: [])  # they take long, and no night depends on them
        nightly = {"output": new_bucket(s3), "quality_gates": {"max_users_change": 0.6}}
        storage = store.model_copy(update={"max_attempts": 2}).model_dump(mode="json")
        sections: dict[str, Any] = {"retention": RETENTION, "nightly": nightly}
        disturbed = Deployment.create(shop, "disturbed", tiny_llm, tiny_tokenizer, storage=storage, **sections)
        sections["nightly"] = nightly | {"output": None}
        calm = Deployment.create(shop, "calm", tiny_llm, tiny_tokenizer, **sections)
        yield Season(shop, disturbed, calm, patch)


def test_every_date_is_published_once_and_equals_an_undisturbed_one(season: Season, capsys) -> None:
    seconds = []
    for number in range(NIGHTS):
        fault = FAULTS[number // EVERY % len(FAULTS)] if number % EVERY == EVERY - 1 else None
        seconds.append(season.run(number, fault))

    output, storage = season.disturbed.output, season.disturbed.config.workspace.storage
    days = [FIRST + timedelta(number) for number in range(NIGHTS)]
    log = [entry for entry in entries_after(output, 0) if not entry.get("rollback")]
    twice = [day for day, fault in zip(days[EVERY - 1 :: EVERY], FAULTS * NIGHTS, strict=False) if fault is rollback]
    assert sorted(entry["run_date"] for entry in log) == sorted(map(str, [*days, *twice]))
    assert published_dates(output) == days[-KEPT_RUNS:]
    assert all(verify_run(output, day)["rows"] for day in days[-KEPT_RUNS:])

    assert not any(found for _, found in expired(season.disturbed.config, Console(log_json=True)))
    keys = [entry.key for entry in output.list()]
    assert all(any(f"run_date={day}/" in key for day in days[-KEPT_RUNS:]) for key in keys if "run_date=" in key)
    assert all("/lease/" in key for key in keys if key.startswith("_runs/"))
    assert not [key for key in keys if key.startswith("_probe/")]
    made_with = {load_json(output, manifest_key(day))["identity"]["bundle"] for day in days[-KEPT_RUNS:]}
    assert {*bundle_versions(storage)} >= {*made_with, latest_bundle(storage)}
    assert len(bundle_versions(storage)) <= KEPT_RUNS + KEPT_BUNDLES
    with capsys.disabled():
        print(f"\n{NIGHTS} nights, {len(keys)} objects at last; seconds a night:", *(f"{one:.1f}" for one in seconds))
