"""What each worker did last, as notes in the store: where one looks when a run hangs.

_runs/run_date=D/<run id>/progress/part-00003.json    who works on the shard, at what, and since when
"""

import json
import os
import socket
from collections.abc import Iterable
from datetime import UTC, datetime

from allmrec.publishing.run import Run

_NAMED = 8  # shards in a message


def note(run: Run, shard: int, doing: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"host": socket.gethostname(), "pid": os.getpid(), "doing": doing, "since": now}
    run.storage.write(_key(run, shard), json.dumps(content).encode())


def diagnosis(run: Run, shards: Iterable[int]) -> str:
    """Which of the shards are unfinished, and who was at what with them."""
    unfinished = sorted(set(shards) - run.finished_shards())
    begun = {
        shard: json.loads(run.storage.read(key)) for shard in unfinished if run.storage.exists(key := _key(run, shard))
    }
    told = [
        f"shard {shard}: process {last['pid']} on {last['host']}, at {last['doing']!r} since {last['since']}"
        for shard, last in [*begun.items()][:_NAMED]
    ]
    more = [f"{len(begun) - _NAMED} more were begun"] if len(begun) > _NAMED else []
    waiting = [f"{len(unfinished) - len(begun)} were not begun"] if len(begun) < len(unfinished) else []
    return f"{len(unfinished)} shards are unfinished ({'; '.join(told + more + waiting)})"


def _key(run: Run, shard: int) -> str:
    return f"{run.work}/progress/part-{shard:05d}.json"
