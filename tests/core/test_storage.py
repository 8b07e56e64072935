"""The storage contract, on a folder and on S3 over HTTP, also when the network or the store misbehaves."""

import http.client
import pickle
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader

from allmrec.core.storage import Entry, S3Config, Storage, open_storage
from allmrec.core.storage.s3 import S3Storage
from tests.s3_fixtures import PREFIX, IgnoresConditions, Proxy, new_bucket, proxied, together


def test_what_is_put_is_read_copied_listed_and_deleted(storage: Storage) -> None:
    below = storage.at("a/b")
    below.write("x", b"1")
    below.write("x", b"22")
    below.copy("x", "c/y")
    storage.write("ab", b"")
    assert storage.read("a/b/x") == below.read("c/y") == b"22"
    assert list(storage.list()) == [Entry("a/b/c/y", 2), Entry("a/b/x", 2), Entry("ab", 0)]
    assert [entry.key for entry in below.list("c/")] == ["c/y"]
    assert [entry.key for entry in storage.list("a/b/x")] == ["a/b/x"]
    assert list(storage.list("nothing/here")) == []
    below.delete("x")
    below.delete("x")
    assert not below.exists("x") and below.exists("c/y")
    with pytest.raises(FileNotFoundError, match="a/b/x"):
        below.read("x")
    with pytest.raises(FileNotFoundError):
        below.copy("x", "z")
    assert [entry.key for entry in storage.list()] == ["a/b/c/y", "ab"], "a failed copy leaves nothing"


def test_of_sixteen_creators_one_wins(storage: Storage) -> None:
    writers = [storage, pickle.loads(pickle.dumps(storage))] * 8  # the second as another process has it
    for attempt in range(5):
        won = together([partial(w.create, f"key-{attempt}", b"%d" % i) for i, w in enumerate(writers)])
        assert sorted(won) == [False] * 15 + [True]
        assert storage.read(f"key-{attempt}") == b"%d" % won.index(True)


def test_readers_see_the_old_bytes_or_the_new(storage: Storage) -> None:
    versions = [bytes([i]) * 200_000 for i in range(10)]
    storage.write("key", versions[0])

    def write() -> None:
        for version in versions:
            storage.write("key", version)

    writer = Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert storage.read("key") in versions
        assert [entry.key for entry in storage.list()] == ["key"]
    writer.join()


def test_the_probe_trusts_a_store_that_honours_put_if_absent(storage: Storage) -> None:
    storage.probe_create()
    assert list(storage.list()) == []


def test_a_store_that_ignores_the_condition_is_refused(moto_endpoint: str) -> None:
    honest = S3Config(endpoint_url=moto_endpoint, region="us-east-1", addressing_style="path")
    uri = new_bucket(honest)
    with proxied(honest, IgnoresConditions) as s3, pytest.raises(ValueError, match="does not honour put-if-absent"):
        open_storage(uri, s3).probe_create()


@pytest.mark.s3
def test_a_create_whose_answer_was_lost_still_knows_that_it_won(s3: S3Config, s3_uri: str) -> None:
    class LosesFirstAnswer(Proxy):
        requests = 0

        def answer(self, answer: http.client.HTTPResponse, body: bytes) -> None:
            type(self).requests += 1
            if type(self).requests == 1:
                self.close_connection = True  # the store has the object; the client hears nothing
            else:
                super().answer(answer, body)

    with proxied(s3, LosesFirstAnswer) as flaky:
        storage = open_storage(s3_uri, flaky)
        assert storage.create("key", b"mine")
        assert LosesFirstAnswer.requests > 1
        assert not storage.create("key", b"another's")
    assert open_storage(s3_uri, s3).read("key") == b"mine"


@pytest.mark.s3
def test_a_create_is_tried_again_after_a_conflict(s3: S3Config, s3_uri: str) -> None:
    class ConflictsFirst(Proxy):
        requests = 0

        def forward(self) -> None:
            type(self).requests += 1
            if type(self).requests > 1:
                return super().forward()
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(409)
            body = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = forward

    with proxied(s3, ConflictsFirst) as busy:
        assert open_storage(s3_uri, busy).create("key", b"mine")


@pytest.mark.s3
def test_a_read_cut_off_in_the_body_is_tried_again(s3: S3Config, s3_uri: str) -> None:
    class CutsFirstBody(Proxy):
        cut = False

        def answer(self, answer: http.client.HTTPResponse, body: bytes) -> None:
            if self.command != "GET" or type(self).cut:
                return super().answer(answer, body)
            type(self).cut = True
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True

    data = bytes(range(256)) * 1000
    with proxied(s3, CutsFirstBody) as flaky:
        storage = open_storage(s3_uri, flaky)
        storage.write("key", data)
        assert storage.read("key") == data
        assert CutsFirstBody.cut


class Moody(Proxy):
    """Answers each request badly the first time: subclasses say how."""

    met: set[tuple[str, str, bool]]

    def forward(self) -> None:
        request = self.command, self.path, "x-amz-copy-source" in self.headers
        if request in self.met:
            return super().forward()
        self.met.add(request)
        self.misbehave()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = forward

    def misbehave(self) -> None:
        raise NotImplementedError

    def refuse(self, status: int, code: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"<Error><Code>{code}</Code></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)


class Fails(Moody):
    def misbehave(self) -> None:
        self.refuse(500, "InternalError")


class IsOverloaded(Moody):
    def misbehave(self) -> None:
        if len(self.met) > 2:  # the client slows down for long
            return Proxy.forward(self)
        self.refuse(503, "SlowDown")


class Hangs(Moody):
    def misbehave(self) -> None:
        time.sleep(0.6)  # longer than the client waits
        self.close_connection = True


class CutsUploads(Moody):
    def misbehave(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        self.close_connection = True


class FailsWhenDone(Moody):
    """The store has done it, and says that it has not."""

    misreports = False

    def misbehave(self) -> None:
        self.misreports = True
        Proxy.forward(self)
        self.misreports = False

    def answer(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        if not self.misreports:
            return super().answer(answer, body)
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.mark.s3
@pytest.mark.parametrize("mood", [Fails, IsOverloaded, Hangs, CutsUploads, FailsWhenDone])
def test_every_operation_survives_a_store_in_a_bad_mood(s3: S3Config, s3_uri: str, mood: type[Moody]) -> None:
    mood.met, data = set(), bytes(range(256)) * 2000
    with proxied(s3.model_copy(update={"read_timeout_s": 0.3 if mood is Hangs else 5}), mood) as moody:
        storage = open_storage(s3_uri, moody)
        storage.write("written", data)
        assert storage.create("created", data), "the writer knows that it did, whatever the store said"
        assert not open_storage(s3_uri, moody).create("created", b"another's")
        storage.copy("written", "copied")
        assert storage.read("copied") == storage.read("created") == data
        assert [entry.key for entry in storage.list()] == ["copied", "created", "written"]
        storage.delete("written")
        assert not storage.exists("written") and storage.exists("copied")
    assert len(mood.met) > 7


@pytest.mark.parametrize(
    ("style", "address"), [("path", "store.example/bucket/"), ("virtual", "bucket.store.example/")]
)
def test_a_store_is_addressed_and_waited_for_as_configured(moto_endpoint: str, style: Any, address: str) -> None:
    s3 = S3Config(endpoint_url="http://store.example", region="eu-north-1", addressing_style=style, read_timeout_s=3)
    storage = open_storage("s3://bucket", s3)
    assert isinstance(storage, S3Storage)
    url = storage.client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
    assert url.startswith(f"http://{address}key?")
    config = storage.client.meta.config
    assert (config.region_name, config.read_timeout, config.retries["total_max_attempts"]) == ("eu-north-1", 3, 8)


def test_what_botocore_knows_of_aws_is_read_once_a_process(s3_uri: str, s3: S3Config, monkeypatch) -> None:
    """A task's storages are pickled and make a client of their own: it has to be cheap."""
    open_storage(s3_uri, s3).write("a", b"1")
    monkeypatch.setattr(JSONFileLoader, "load_file", None)
    assert open_storage(s3_uri, s3).read("a") == b"1"


def test_what_is_written_is_encrypted_as_configured(moto_endpoint: str) -> None:
    s3 = S3Config(endpoint_url=moto_endpoint, region="us-east-1", encryption="aws:kms", kms_key_id="key-1")
    storage = open_storage(new_bucket(s3), s3)
    storage.write("written", b"1")
    assert storage.create("created", b"2") and not storage.create("created", b"3")
    storage.copy("written", "copied")
    for key in ("written", "created", "copied"):
        head = storage.client.head_object(Bucket=storage.bucket, Key=f"{PREFIX}/{key}")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "key-1")
    with pytest.raises(ValueError, match="kms_key_id is a key of encryption aws:kms"):
        S3Config(kms_key_id="key-1")


@pytest.mark.s3
def test_a_listing_goes_on_past_its_first_page(s3: S3Config, s3_uri: str) -> None:
    storage = open_storage(s3_uri, s3)
    keys = [f"{n:04d}" for n in range(1001)]
    together([lambda n=n: [storage.write(key, b"") for key in keys[n::16]] for n in range(16)])
    assert [entry.key for entry in storage.list()] == keys


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3: S3Config) -> None:
    nowhere = open_storage("s3://no-such-bucket-anywhere/prefix", s3)
    for call in (lambda: nowhere.read("x"), lambda: nowhere.write("x", b""), lambda: list(nowhere.list())):
        with pytest.raises(ValueError, match="no bucket 'no-such-bucket-anywhere'"):
            call()


@pytest.mark.s3
def test_missing_credentials_are_named(s3: S3Config, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ValueError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        open_storage(s3_uri, s3).read("x")


def test_an_endpoint_that_does_not_answer_is_named(moto_endpoint: str) -> None:
    s3 = S3Config(endpoint_url="http://127.0.0.1:9", region="us-east-1", max_attempts=1)
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9.*check storage\.endpoint_url"):
        open_storage("s3://bucket", s3).read("x")


def test_the_endpoint_may_have_a_path(moto_endpoint: str) -> None:
    s3 = S3Config(endpoint_url=moto_endpoint, region="us-east-1", addressing_style="path")
    s3_uri = new_bucket(s3)

    class Gateway(Proxy):
        """Serves the store below /s3/. What it forwards differs from what was signed; moto checks no signature."""

        def forward(self) -> None:
            assert self.path.startswith("/s3/"), "else the store is asked at another address"
            self.path = self.path.removeprefix("/s3")
            super().forward()

        do_GET = do_PUT = do_HEAD = forward

    with proxied(s3, Gateway) as below:
        storage = open_storage(s3_uri, below.model_copy(update={"endpoint_url": f"{below.endpoint_url}/s3"}))
        storage.write("key", b"bytes")
        filesystem, root = storage.arrow()
        assert filesystem.open_input_file(f"{root}/key").read() == storage.read("key") == b"bytes"


def test_prefixes_that_a_url_would_cut_are_apart(storage: Storage, request: pytest.FixtureRequest) -> None:
    s3 = request.getfixturevalue("s3") if storage.uri.startswith("s3://") else None
    roots = [f"{storage.uri}{end}" for end in ("/runs", "/runs#1", "/runs#2", "/runs?1", "/runs%23", "/runs;a")]
    for number, root in enumerate(roots):
        open_storage(root, s3).write("key", b"%d" % number)
    assert [open_storage(root, s3).read("key") for root in roots] == [b"%d" % n for n in range(len(roots))]
    assert len(list(storage.list("runs"))) == len(roots)


def test_a_path_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri, path in {
        f"file://{tmp_path}/a#1?b%41": tmp_path / "a#1?b%41",
        f"file:{tmp_path}/c d": tmp_path / "c d",
        "log:2024#1": tmp_path / "log:2024#1",
    }.items():
        open_storage(uri).write("key", b"1")
        assert (path / "key").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("uri", "message"),
    [("s3:///key", "names no bucket"), ("gs://bucket/key", "unknown scheme 'gs'"), ("s3://b/a//b", "empty part")],
)
def test_a_uri_that_names_no_store_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_storage(uri)


def test_arrow_reads_what_was_written(storage: Storage) -> None:
    storage.write("folder/file", b"bytes")
    filesystem, root = storage.arrow()
    assert filesystem.open_input_file(f"{root}/folder/file").read() == b"bytes"
