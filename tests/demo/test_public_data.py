import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from allmrec.demo import public_data as fetch_module
from allmrec.demo.public_data import RemoteFile, fetch, unpack

DATA = np.random.default_rng(0).bytes(100_000)
MD5 = hashlib.md5(DATA).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Sends DATA; subclasses say how it goes wrong. Remembers the ranges that were asked for."""

    protocol_version = "HTTP/1.1"
    cuts: list[int]  # after how many bytes of each answer the connection ends; then it goes well
    statuses: list[int]  # instead of an answer, before all else
    has_ranges, etag, data = True, '"1"', DATA
    requested: list[str | None]

    def do_GET(self) -> None:
        requested = self.headers.get("Range")
        self.requested.append(requested)
        if self.statuses:
            self.send_response(self.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first = int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0
        if not self.has_ranges or self.headers.get("If-Range") != self.etag:
            first = 0
        body = self.data[first:]
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(self.data) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(body)))
        if self.etag:
            self.send_header("ETag", self.etag)
        self.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(body)
        self.wfile.write(body[:cut])
        self.close_connection = cut < len(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(**behaviour: object) -> Iterator[tuple[str, type[Server]]]:
    handler = type("Handler", (Server,), {"cuts": [], "statuses": [], "requested": [], **behaviour})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/data.bin", handler
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(fetch_module, "_CHUNK", 1000)


def test_a_cut_connection_is_resumed(tmp_path):
    seen = []
    with serving(cuts=[30_000, 20_000]) as (url, server):
        assert fetch(RemoteFile(url=url, md5=MD5), tmp_path, lambda *done: seen.append(done), pause_s=0)
        first, second, third = server.requested
        assert first is None and second == "bytes=30000-" and third == "bytes=50000-"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"data.bin": DATA}
    assert seen[-1] == (100_000, 100_000)
    with serving(statuses=[500] * 9) as (url, server):  # it exists: no request is made
        assert not fetch(RemoteFile(url=url, md5=MD5), tmp_path)
        assert not server.requested


def test_another_run_resumes_where_one_ended(tmp_path):
    with serving(cuts=[30_000, 0, 0]) as (url, server):
        with pytest.raises(ValueError, match="run again to resume after 30,000 bytes"):
            fetch(RemoteFile(url=url, md5=MD5), tmp_path, attempts=2, pause_s=0)
        assert fetch(RemoteFile(url=url, md5=MD5), tmp_path, attempts=2, pause_s=0)
        assert server.requested[-1] == "bytes=30000-"
    assert (tmp_path / "data.bin").read_bytes() == DATA


@pytest.mark.parametrize("behaviour", [{"has_ranges": False}, {"etag": None}, {"etag": 'W/"1"'}])
def test_servers_that_cannot_resume_start_again(tmp_path, behaviour):
    with serving(cuts=[30_000], **behaviour) as (url, server):
        assert fetch(RemoteFile(url=url, md5=MD5), tmp_path, pause_s=0)
        assert len(server.requested) == 2
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_file_that_changed_meanwhile_is_not_mixed(tmp_path):
    with serving(cuts=[30_000, 0]) as (url, server):
        with pytest.raises(ValueError):
            fetch(RemoteFile(url=url), tmp_path, attempts=1, pause_s=0)
        server.etag, server.data, server.cuts = '"2"', DATA[::-1], []
        fetch(RemoteFile(url=url), tmp_path, pause_s=0)
    assert (tmp_path / "data.bin").read_bytes() == DATA[::-1]


def test_a_wrong_checksum_or_size_leaves_nothing(tmp_path):
    with serving() as (url, _):
        for promise in {"md5": "0" * 32}, {"sha256": "0" * 64}, {"size": 7}:
            with pytest.raises(ValueError, match=r"data\.bin has (md5|sha256|100,000).* not "):
                fetch(RemoteFile(url=url, **promise), tmp_path)
            assert not (tmp_path / "data.bin").exists() and not (tmp_path / "data.bin.part").exists()
        assert fetch(RemoteFile(url=url, size=100_000, sha256=hashlib.sha256(DATA).hexdigest()), tmp_path)
        with pytest.raises(ValueError, match=r"delete .*data\.bin and fetch it again"):
            fetch(RemoteFile(url=url, size=7), tmp_path)


def test_refusals_end_at_once_and_busy_servers_are_asked_again(tmp_path):
    with serving(statuses=[404, 503, 429]) as (url, server):
        with pytest.raises(ValueError, match=r"/data\.bin: the server answers 404"):
            fetch(RemoteFile(url=url), tmp_path, pause_s=0)
        assert len(server.requested) == 1
        assert fetch(RemoteFile(url=url), tmp_path, pause_s=0)
        assert len(server.requested) == 4


def test_no_server_answers(tmp_path):
    with serving() as (url, _):
        pass
    with pytest.raises(ValueError, match="run again to resume"):
        fetch(RemoteFile(url=url), tmp_path, attempts=2, pause_s=0)


def test_archives_are_unpacked_beside_themselves(tmp_path):
    archive = tmp_path / "ml.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("ml/ratings.csv", "a" * 1000)
        target.writestr("ml/empty/", "")
    unpack(archive)
    unpack(archive)
    assert (tmp_path / "ml/ratings.csv").read_text() == "a" * 1000
    assert not list(tmp_path.rglob("*.part"))
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("../out.txt", "a")
    with pytest.raises(ValueError, match="points outside the folder"):
        unpack(archive)
    archive.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="delete it and fetch it again"):
        unpack(archive)
