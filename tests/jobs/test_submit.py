"""`allmrec submit` against a head that answers as Ray's jobs API does, over HTTP."""

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from allmrec.core.storage import open_storage
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.submit import submit

DATE = datetime.date(2026, 11, 21)
NAME = "shop-daily-2026-11-21"


class Head(ThreadingHTTPServer):
    """`jobs` by submission id; each question for a job's state takes the next of `states`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states: list[dict[str, Any]] = []
        self.unreachable = 0  # questions that are cut
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, **fields: Any) -> None:
        self.jobs[name] = {"type": "SUBMISSION", "submission_id": name, "entrypoint": "", "status": "PENDING", **fields}


class Answer(BaseHTTPRequestHandler):
    server: Head

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/jobs/").removesuffix("/logs")
        if self.path == "/api/version":
            self.send({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
        elif self.server.unreachable:
            self.server.unreachable -= 1
            self.close_connection = True
        elif self.path == "/api/jobs/":
            self.send(list(self.server.jobs.values()))
        elif name not in self.server.jobs:
            self.send("no such job", 404)
        elif self.path.endswith("/logs"):
            self.send({"logs": '{"event": "of the job"}\n'})
        else:
            if self.server.states:
                self.server.jobs[name] |= self.server.states.pop(0)
            self.send(self.server.jobs[name])

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.add(request["submission_id"], entrypoint=request["entrypoint"])
        self.send({"job_id": request["submission_id"], "submission_id": request["submission_id"]})

    def send(self, answer: Any, status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def head() -> Iterator[Head]:
    with Head() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(name="shop", root=str(tmp_path))


def run(config: Config, head: Head, lost_s: float = 5) -> int:
    arguments = ["--config", "/config/my config.yaml", "--date", str(DATE)]
    return submit(config, Console(log_json=True), head.address, DATE, arguments, poll_s=0.01, lost_s=lost_s)


def publish(config: Config) -> None:
    open_storage(config.output_uri).write(f"run_date={DATE}/_SUCCESS", b"{}")


def test_the_job_is_named_by_its_date_and_its_log_is_shown(
    config: Config, head: Head, capsys: pytest.CaptureFixture[str]
) -> None:
    head.states = [{"status": "RUNNING"}, {"status": "RUNNING"}, {"status": "SUCCEEDED", "driver_exit_code": 0}]
    publish(config)
    assert run(config, head) == 0
    assert head.jobs[NAME]["entrypoint"] == "python -m jobs.daily --config '/config/my config.yaml' --date 2026-11-21"
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["follow", "job", "job", "of the job", "ended"]


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_the_jobs_exit_code_is_passed_on(config: Config, head: Head, code: int) -> None:
    publish(config)  # as when an earlier run published the date, and this one was to replace it
    head.states = [{"status": "FAILED", "driver_exit_code": code}]
    assert run(config, head) == code


def test_a_stopped_job_and_one_that_published_nothing_fail(config: Config, head: Head) -> None:
    head.states = [{"status": "STOPPED"}]
    assert run(config, head) == 1
    head.states = [{"status": "SUCCEEDED", "driver_exit_code": 0}]
    assert run(config, head) == 1


def test_a_job_at_work_is_followed_and_one_that_ended_has_a_successor(config: Config, head: Head) -> None:
    publish(config)
    head.add("shop-daily-2026-11-20", status="RUNNING")
    head.add(NAME, status="RUNNING")
    head.states = [{"status": "SUCCEEDED", "driver_exit_code": 0}]
    assert run(config, head) == 0 and len(head.jobs) == 2
    head.states = [{"status": "SUCCEEDED", "driver_exit_code": 0}]
    assert run(config, head) == 0 and f"{NAME}-2" in head.jobs


def test_a_head_out_of_reach_is_waited_for_and_a_lost_job_fails(config: Config, head: Head) -> None:
    publish(config)
    head.add(NAME, status="RUNNING")
    head.states = [{"status": "RUNNING"}]
    timer = threading.Timer(0.3, head.jobs.clear)  # the head comes back without its jobs
    timer.start()
    assert run(config, head) == 1
    head.unreachable, head.states = 3, [{"status": "SUCCEEDED", "driver_exit_code": 0}]
    head.add(NAME, status="RUNNING")
    assert run(config, head) == 0
