"""How the run of a date went, as a small JSON beside its report: what monitoring reads when the job is gone.

    _reports/run_date=D/status.json    state, times, rows, users by source, gates; replaced by the next attempt

`expire` takes it with the report. A job that is killed writes none: then the newest published date says enough.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

from allmrec.core.commit_log import find_json
from allmrec.core.storage import Storage
from allmrec.nightly.report import FOLDER

log = logging.getLogger(__name__)
_NAME = "status.json"
PUBLISHED, GATE_FAILED, FAILED = STATES = ("published", "gate_failed", "failed")


class RunStatus:
    """What is known of a run while it is made; without an outcome it has failed."""

    def __init__(self, run_date: date, run_id: str):
        self.held_back = False  # by a quality gate
        self.fields: dict[str, Any] = {"run_date": str(run_date), "run_id": run_id, "state": FAILED, "error": None}

    def reported(self, report: Mapping[str, Any]) -> None:
        """Take the figures of report.json that monitoring shows."""
        figures, gates = report["figures"], report["quality_gates"]
        self.held_back = any(gate["blocks"] and not gate["holds"] for gate in gates)
        self.fields |= {
            "rows": figures["users"],
            "users": figures["sources"],
            "figures": {gate["figure"]: gate["value"] for gate in gates},
            "gate_failed": {gate["name"]: not gate["holds"] for gate in gates},
        }

    def ended(self, started: datetime, error: BaseException | None) -> None:
        now = datetime.now(UTC)
        if error is None:
            self.fields["state"] = PUBLISHED
        else:
            self.fields |= {"state": GATE_FAILED if self.held_back else FAILED, "error": type(error).__name__}
        self.fields |= {
            "started_at": started.isoformat(timespec="seconds"),
            "ended_at": now.isoformat(timespec="seconds"),
            "duration_s": round((now - started).total_seconds(), 1),
        }


@contextmanager
def recording_status(output: Storage, run_date: date, run_id: str) -> Iterator[RunStatus]:
    """Around a run: stores how it ends. A status that cannot be stored is a warning; the run's outcome counts."""
    status, started, failure = RunStatus(run_date, run_id), datetime.now(UTC), None
    try:
        yield status
    except BaseException as error:
        failure = error
        raise
    finally:
        status.ended(started, failure)
        try:
            output.write(f"{FOLDER}/run_date={run_date}/{_NAME}", json.dumps(status.fields, indent=1).encode())
        except Exception as error:
            log.warning("the run's status could not be stored: %s", error)


def last_status(output: Storage) -> dict[str, Any] | None:
    """The status of the latest date that has one."""
    keys = [entry.key for entry in output.list(f"{FOLDER}/run_date=") if entry.key.endswith(f"/{_NAME}")]
    return find_json(output, keys[-1]) if keys else None
