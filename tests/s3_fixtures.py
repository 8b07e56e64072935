"""A store to test against: a folder, and S3 over HTTP.

S3 is a moto server of this process, or the endpoint that ALLMREC_TEST_S3_ENDPOINT names (credentials from the
environment, as always). `Proxy` is between client and store where a test wants the network to misbehave.
"""

import http.client
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread
from urllib.parse import urlparse

import boto3
import pytest
from moto.server import ThreadedMotoServer

from allmrec.core.storage import S3Config, Storage, open_storage

PREFIX = "pre fix#1?x=%41/ü[1]&+"  # nothing in it means anything


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """URL of a moto server. It accepts any credentials; some are set where the environment has none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
            if name not in os.environ:
                patch.setenv(name, value)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request, else
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture(scope="session")
def s3(request: pytest.FixtureRequest) -> S3Config:
    """How to reach the S3 under test."""
    endpoint = os.environ.get("ALLMREC_TEST_S3_ENDPOINT") or request.getfixturevalue("moto_endpoint")
    return S3Config(endpoint_url=endpoint, region="us-east-1", addressing_style="path")


@pytest.fixture(scope="module")
def s3_environment(s3: S3Config) -> Iterator[None]:
    """The environment says how to reach S3."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", str(s3.endpoint_url))
        patch.setenv("AWS_REGION", str(s3.region))
        patch.setenv("AWS_DEFAULT_REGION", str(s3.region))
        yield


@pytest.fixture
def s3_uri(s3: S3Config) -> str:
    """A prefix of a new bucket."""
    return new_bucket(s3)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty store: each test runs once on a folder and once on S3."""
    if request.param == "local":
        return open_storage(str(tmp_path / PREFIX))
    return open_storage(request.getfixturevalue("s3_uri"), request.getfixturevalue("s3"))


@pytest.fixture
def plain_s3_uri(s3: S3Config) -> str:
    """As `s3_uri`, for readers of other makers, which take it for a URL."""
    return new_bucket(s3, "prefix")


def new_bucket(s3: S3Config, prefix: str = PREFIX) -> str:
    bucket = f"test-{secrets.token_hex(8)}"
    boto3.client("s3", endpoint_url=s3.endpoint_url, region_name=s3.region).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/{prefix}"


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on as they are. Subclasses change what they send on, or lose the answer."""

    protocol_version = "HTTP/1.1"
    upstream: str

    def forward(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        connection = http.client.HTTPConnection(urlparse(self.upstream).netloc)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, self.rfile.read(length), self.outgoing(headers))
        answer = connection.getresponse()
        self.answer(answer, answer.read())
        connection.close()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

    def outgoing(self, headers: dict[str, str]) -> dict[str, str]:
        return headers

    def answer(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        self.send_response(answer.status)
        replaced = {"transfer-encoding", "connection", "date", "server"}
        if self.command != "HEAD":
            replaced.add("content-length")
            self.send_header("Content-Length", str(len(body)))
        for name, value in answer.getheaders():
            if name.lower() not in replaced:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class IgnoresConditions(Proxy):
    """A store that does not know put-if-absent."""

    def outgoing(self, headers: dict[str, str]) -> dict[str, str]:
        return {name: value for name, value in headers.items() if name.lower() != "if-none-match"}


@contextmanager
def proxied(s3: S3Config, handler: type[Proxy]) -> Iterator[S3Config]:
    """The same store, reached through `handler`."""
    assert s3.endpoint_url
    handler.upstream = s3.endpoint_url
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3.model_copy(update={"endpoint_url": f"http://127.0.0.1:{server.server_port}"})
    finally:
        server.shutdown()
        server.server_close()


def together(calls: list[Callable[[], object]]) -> list[object]:
    """Run the calls at the same moment, one thread each: their results, or the exceptions they ended with."""
    barrier = Barrier(len(calls))

    def start(call: Callable[[], object]) -> object:
        barrier.wait()
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))
