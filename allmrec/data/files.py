"""Find the files of an input table: files, folders and globs, on a disk or on S3, and the columns in folders' names.

Knows names only; what is in a file is `sources`' business.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from pyarrow import fs

from allmrec.storage import S3Config, open_storage

_WILDCARD = re.compile(r"\*\*/|\*+|\?|\[[^]]+\]")
_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class InputFile:
    uri: str
    size: int  # bytes
    modified: int  # nanoseconds since 1970


def locate(uri: str, s3: S3Config) -> tuple[Any, str]:
    """(pyarrow FileSystem, path in it)."""
    return open_storage(uri, s3).arrow()


def list_files(uris: Sequence[str], suffixes: tuple[str, ...], s3: S3Config) -> list[InputFile]:
    """The files that URIs mean, ordered, each once.

    A folder means the files below it, at any depth, that have one of the suffixes. In a glob, `*`, `?` and `[…]` stand
    for characters of one name and `**` for any folders; a file that matches is taken whatever its suffix, and a folder
    that matches means what is below it. Names that begin with `_` or `.` are left out, unless the URI has them.

    Raises:
        ValueError: what a URI means does not exist, cannot be listed, or holds no such file.
    """
    found: dict[str, InputFile] = {}
    for uri in uris:
        try:
            files = list(_list(uri, suffixes, s3))
        except (OSError, re.error) as error:
            raise ValueError(f"cannot list {uri}: {str(error).strip().splitlines()[0]}") from None
        if not files and ("?" in uri or _type(uri, s3) == fs.FileType.NotFound):
            raise ValueError(f"no such path: {uri}")
        if not files:
            raise ValueError(f"{uri} holds no {' or '.join(suffixes)} file")
        found |= {file.uri: file for file in files}
    return [found[uri] for uri in sorted(found)]


def _list(uri: str, suffixes: tuple[str, ...], s3: S3Config) -> Iterator[InputFile]:
    root, glob = uri.rstrip("/"), ""
    wildcard = _WILDCARD.search(uri)
    if wildcard and ("?" in uri or _type(uri, s3) == fs.FileType.NotFound):  # else [1] belongs to a file's name
        root = uri[: wildcard.start()].rpartition("/")[0]
        glob = uri[len(root) :].strip("/")
    folder = f"{root}/" if root or uri.startswith("/") else ""
    filesystem, path = locate(folder or ".", s3)
    if _type(root, s3) == fs.FileType.File:
        info = filesystem.get_file_info(path)
        yield InputFile(root, info.size, info.mtime_ns or 0)
        return
    for file, inside in _match(filesystem, path, glob.split("/") if glob else ["**"]):
        if file.type == fs.FileType.File and _is_data(inside if glob else file.path[len(path) :], suffixes):
            yield InputFile(folder + file.path[len(path) :].lstrip("/"), file.size, file.mtime_ns or 0)


def _match(filesystem: Any, folder: str, parts: list[str]) -> Iterator[tuple[Any, str | None]]:
    """What a glob means below a folder, and what it leaves open of the path. Lists no folder that it rules out."""
    deep = "**" in parts[0]
    pattern = re.compile(_regex("/".join(parts) if deep else parts[0]) + "(?P<inside>/.*)?")
    for info in filesystem.get_file_info(fs.FileSelector(folder, recursive=deep, allow_not_found=True)):
        match = pattern.fullmatch(info.path[len(folder) :].lstrip("/"))
        is_folder = info.type == fs.FileType.Directory
        if match and (deep or (len(parts) == 1 and not is_folder)):
            yield info, match["inside"]
        elif match and is_folder and len(parts) > 1:
            yield from _match(filesystem, info.path, parts[1:])
        elif match and is_folder:
            yield from ((file, file.path[len(info.path) :]) for file, _ in _match(filesystem, info.path, ["**"]))


def _type(uri: str, s3: S3Config) -> Any:
    filesystem, path = locate(uri or ".", s3)
    return filesystem.get_file_info(path).type


def _regex(glob: str) -> str:
    """The regular expression of the paths that a glob means."""
    parts, at = [], 0
    for wildcard in _WILDCARD.finditer(glob):
        parts.append(re.escape(glob[at : wildcard.start()]))
        first = "(?![_.])" if wildcard.start() == 0 or glob[wildcard.start() - 1] == "/" else ""
        if wildcard[0] == "**/":
            parts.append("(?:(?![_.])[^/]+/)*")
        elif wildcard[0].startswith("["):
            parts.append(first + wildcard[0].replace("[!", "[^").replace("\\", "\\\\"))
        else:
            parts.append(first + ("[^/]" if wildcard[0] == "?" else "[^/]*"))
        at = wildcard.end()
    return "".join([*parts, re.escape(glob[at:])])


def _is_data(below: str | None, suffixes: tuple[str, ...]) -> bool:
    """Whether a path below a folder is that of an input file; None is a path that was named itself."""
    if below is None:
        return True
    hidden = any(part.startswith(("_", ".")) for part in below.split("/"))
    return not hidden and below.endswith(suffixes)


def partitions(uri: str) -> dict[str, str | None]:
    """The columns that Hive writes into the names of folders: `day=2024-01-01/part-0.parquet`."""
    folders = [folder.partition("=") for folder in uri.split("/")[:-1] if "=" in folder]
    return {key: None if value == _NULL else unquote(value) for key, _, value in folders}
