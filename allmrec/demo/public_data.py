"""Download public files so that a cut connection costs little and an existing file is whole.

Bytes go to `<file>.part`, from which the next attempt or the next run resumes; the file takes its name when its size
and checksum are right. Knows HTTP and checksums. Which files make a data set is `jobs.demo.fetch_data`'s business.
"""

import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import requests
import urllib3
from pydantic import Field

from allmrec.core.settings import Section

_CHUNK = 1 << 20
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}

Advance = Callable[[int, int | None], None]  # bytes there are, and of how many, if the server says so


class RemoteFile(Section):
    """A file of a publisher, and what the publisher says about its content."""

    url: str
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    size: int | None = Field(None, ge=0)  # bytes
    unpack: Literal["zip"] | None = None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(
    remote: RemoteFile,
    folder: Path,
    advance: Advance = lambda done, total: None,
    attempts: int = 6,
    pause_s: float = 1,
    timeout_s: float = 60,
) -> bool:
    """Download a file into a folder, if it is not there.

    Args:
        attempts: in a row that bring not one byte, before giving up; pauses between them double.

    Returns:
        whether anything was downloaded.

    Raises:
        ValueError: the server refuses, cannot be reached, or sends something else than the publisher promises.
    """
    target = folder / remote.name
    if target.exists():
        _check(remote, target, f"delete {target} and fetch it again")
        return False
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _download(remote.url, part, advance, timeout_s)
            break
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            failures = failures + 1 if _size(part) <= before else 1
            if failures >= attempts:
                raise ValueError(
                    f"{remote.url}: {str(error).splitlines()[0]}; run again to resume after {_size(part):,} bytes"
                ) from None
            time.sleep(pause_s * 2 ** (failures - 1))
    try:
        _check(remote, part, "the publisher may have changed it, or something between altered it; fetch it again")
    except ValueError:
        part.unlink()
        raise
    _validator(part).unlink(missing_ok=True)
    os.replace(part, target)
    return True


def _download(url: str, part: Path, advance: Advance, timeout_s: float) -> None:
    """Append what is missing to `part`, or start again where the server cannot resume or has another version now."""
    done, validator = _size(part), _validator(part)
    headers = {"Accept-Encoding": "identity"}
    if done and validator.exists():
        headers |= {"Range": f"bytes={done}-", "If-Range": validator.read_text()}
    with requests.get(url, headers=headers, stream=True, timeout=timeout_s) as response:
        if response.status_code in _WORTH_ANOTHER_TRY:
            raise requests.HTTPError(f"{response.status_code} {response.reason}")
        there = response.headers.get("Content-Range", "")
        if response.status_code == 416 and there == f"bytes */{done}":  # nothing is missing
            return
        if response.status_code == 416 or (response.status_code == 206 and not there.startswith(f"bytes {done}-")):
            part.unlink()
            raise requests.HTTPError("the server cannot resume the download; it starts again")
        if response.status_code not in (200, 206):
            raise ValueError(f"{url}: the server answers {response.status_code} {response.reason}")
        if response.status_code == 200:
            done = 0
            version = response.headers.get("ETag", "W/")
            version = response.headers.get("Last-Modified") if version.startswith("W/") else version
            validator.write_text(version) if version else validator.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with part.open("ab" if done else "wb") as file:
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                done += len(chunk)
                advance(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total is not None and done != total:
            raise requests.ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _check(remote: RemoteFile, path: Path, remedy: str) -> None:
    """Raise ValueError if a file is not what the publisher says it is."""
    if remote.size is not None and _size(path) != remote.size:
        raise ValueError(f"{remote.name} has {_size(path):,} bytes, not the {remote.size:,} of {remote.url}; {remedy}")
    for kind in ("md5", "sha256"):
        expected = getattr(remote, kind)
        if expected is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, kind).hexdigest()
            if found != expected:
                raise ValueError(f"{remote.name} has {kind} {found}, not {expected} as {remote.url} should; {remedy}")


def unpack(archive: Path) -> None:
    """Put the files of a zip archive beside it, each under its name only once it is whole.

    Raises:
        ValueError: the archive is damaged, or a name in it points outside the folder.
    """
    folder = archive.parent.resolve()
    try:
        with zipfile.ZipFile(archive) as source:
            for info in source.infolist():
                target = (folder / info.filename).resolve()
                if not target.is_relative_to(folder):
                    raise ValueError(f"{archive}: {info.filename!r} points outside the folder")
                if info.is_dir() or (target.exists() and _size(target) == info.file_size):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"{target.name}.part")
                with source.open(info) as packed, part.open("wb") as file:
                    shutil.copyfileobj(packed, file, _CHUNK)
                os.replace(part, target)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: {error}; delete it and fetch it again") from None


def _validator(part: Path) -> Path:
    """Holds what tells the version of the file that `part` is the beginning of."""
    return part.with_name(f"{part.name}-version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
