"""Submit `allmrec daily` for a date to a Ray cluster, wait for it, and see that the date is published.

    allmrec submit --address http://allmrec-head-svc:8265 --config /config/config.yaml

For schedulers. `ray job submit` tells them too little: it ends with 1 whatever the job's exit code, and with 0 when the
job was stopped or the head was lost. Knows Ray's jobs API; what a day does is `jobs.daily`.
"""

import datetime
import re
import shlex
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from allmrec.core.commit_log import find_json
from allmrec.publishing.log import manifest_key
from jobs.config import Config
from jobs.runtime.console import Console

T = TypeVar("T")
_LOG_LINES = 50  # of the job's log that are shown at its end


def submit(
    config: Config,
    console: Console,
    address: str,
    run_date: datetime.date,
    arguments: Sequence[str],
    poll_s: float = 10,
    lost_s: float = 600,
) -> int:
    """Returns the exit code: 0 if the date is published, else the driver's (`allmrec.core.errors`), or 1.

    The submission id is made of the workspace's name and the date. A job of the same date that is still at work is
    followed; one that has ended gets a successor with a number.

    Args:
        address: of the head's dashboard.
        arguments: of `python -m jobs.daily`, valid on the head.
        poll_s: seconds between two questions for the job's state.
        lost_s: seconds for which the head may be out of reach.
    """
    command = shlex.join(["python", "-m", "jobs.daily", *arguments])
    patiently = partial(_patiently, poll_s=poll_s, lost_s=lost_s)
    try:
        client = patiently(lambda: JobSubmissionClient(address))
        name = patiently(lambda: _follow_or_submit(client, f"{config.name}-daily-{run_date}", command))
        console.event("follow", submission_id=name, log=f"ray job logs --address {address} --follow {name}")
        job = _ended(lambda: patiently(lambda: client.get_job_info(name)), console, poll_s)
        log = patiently(lambda: client.get_job_logs(name))
    except (OSError, RuntimeError) as error:  # RuntimeError: the head refuses, or knows no such job after it was lost
        console.event("cluster lost", address=address, error=str(error).partition("\n")[0], exit_code=1)
        return 1
    for line in log.splitlines()[-_LOG_LINES:]:
        print(line, flush=True)
    published = find_json(config.workspace.recommendations, manifest_key(run_date)) is not None
    code = 0 if job.status == JobStatus.SUCCEEDED else job.driver_exit_code or 1
    console.event("ended", submission_id=name, status=job.status.value, exit_code=code, published=published)
    return code if code or published else 1


def _follow_or_submit(client: JobSubmissionClient, base: str, command: str) -> str:
    """The submission id of the date's job that is at work, or of a new one."""
    while True:
        before = {
            job.submission_id: job
            for job in client.list_jobs()
            if job.submission_id and re.fullmatch(re.escape(base) + r"(-\d+)?", job.submission_id)
        }
        for name, job in before.items():
            if not job.status.is_terminal():
                return name
        name = f"{base}-{len(before) + 1}" if before else base
        try:
            return client.submit_job(entrypoint=command, submission_id=name)
        except RuntimeError:  # another process was faster with this name, or the head refuses the job
            if all(job.submission_id != name for job in client.list_jobs()):
                raise


def _ended(ask: Callable[[], JobDetails], console: Console, poll_s: float) -> JobDetails:
    """The job once it has ended; every change of its status is an event."""
    status = None
    while True:
        job = ask()
        if job.status != status:
            console.event("job", submission_id=job.submission_id, status=job.status.value)
            status = job.status
        if job.status.is_terminal():
            return job
        time.sleep(poll_s)


def _patiently(ask: Callable[[], T], poll_s: float, lost_s: float) -> T:
    """`ask()`, again while the head cannot be reached, for up to `lost_s` seconds."""
    until = time.monotonic() + lost_s
    while True:
        try:
            return ask()
        except OSError:  # of requests, and the client's own
            if time.monotonic() > until:
                raise
        time.sleep(poll_s)
