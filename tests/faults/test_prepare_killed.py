"""`prepare` is killed at random moments, by SIGKILL of all its processes, and started again."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import yaml

from allmrec.core.storage import open_storage
from benchmarks.memory import tree
from tests.jobs.test_prepare import SHOP, config_of, digests, log, write_parquet

pytestmark = [pytest.mark.e2e, pytest.mark.faults]

KILLS = int(os.environ.get("ALLMREC_KILLS", "1"))


def start(config, path) -> subprocess.Popen:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.prepare", "--config", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen) -> None:
    for pid in reversed(tree(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def test_a_killed_run_started_again_ends_as_an_undisturbed_one(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}, {KILLS} kills")
    dice = random.Random(seed)
    for number in range(4):
        write_parquet(tmp_path / "log" / f"{number}.parquet", log(400, seed=number))
    shop_path = write_parquet(tmp_path / "shop.parquet", SHOP)

    calm = config_of(tmp_path / "calm", tmp_path / "log", shop_path)
    began = time.monotonic()
    assert start(calm, tmp_path / "calm.yaml").wait() == 0
    whole = time.monotonic() - began

    config = config_of(tmp_path / "killed", tmp_path / "log", shop_path)
    storage = open_storage(config.workspace_uri)
    kills = days = 0
    while kills < KILLS:
        process = start(config, tmp_path / "killed.yaml")
        after = dice.uniform(0.45, 0.95) * whole  # before that Ray only starts
        try:
            process.wait(timeout=after)
        except subprocess.TimeoutExpired:
            kill(process)
            kills += 1
            print(f"kill {kills} after {after:.1f} of {whole:.1f} s:", sorted(top(storage)))
            continue
        # It was done: a new day comes in, so that the next kill meets an increment.
        days += 1
        write_parquet(tmp_path / "log" / f"more-{days}.parquet", log(100, seed=100 + days))
        print(f"a run was through after less than {after:.1f} s")
    assert start(config, tmp_path / "killed.yaml").wait() == 0
    assert start(calm, tmp_path / "calm.yaml").wait() == 0
    assert digests(storage) == digests(open_storage(calm.workspace_uri))


def top(storage) -> set[str]:
    return {entry.key.split("/")[0] for entry in storage.list()}
