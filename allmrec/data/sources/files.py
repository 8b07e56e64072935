"""Find the files of an input table: files, folders and globs, on a disk or on S3, and the columns in folders' names.

Knows names only; what is in a file is `sources`' business, and which files make up a table of Delta Lake or Iceberg
that of `snapshots`: here their folders are told from others and never looked into.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from pyarrow import fs

from allmrec.core.storage import S3Config, is_plain_key, open_storage, s3_key

_WILDCARD = re.compile(r"\*\*/|\*+|\?|\[[^]]+\]")
_NULL = "__HIVE_DEFAULT_PARTITION__"
DELTA, ICEBERG, HUDI = "Delta Lake", "Iceberg", "Hudi"
_MARKS = {"_delta_log": DELTA, ".hoodie": HUDI}  # folders in the folder of a table
METADATA = ".metadata.json"  # a version of an Iceberg table, in the folder `metadata` of it
EMPTY = "empty"


@dataclass(frozen=True)
class InputFile:
    uri: str
    size: int  # bytes
    modified: int  # nanoseconds since 1970
    reading: str | None = None  # of a table format's: a fingerprint of what is read of it and how
    version: str | None = None  # that of its table

    @property
    def content(self) -> dict[str, Any]:
        """What says that the file has not changed."""
        return {name: value for name, value in vars(self).items() if name != "version"}


@dataclass
class Listing:
    """What URIs mean."""

    files: dict[str, InputFile] = field(default_factory=dict)  # by URI
    tables: dict[str, str] = field(default_factory=dict)  # URI of a folder (or of Iceberg's metadata) → format
    passed_over: dict[str, str] = field(default_factory=dict)  # files in folders that are not input, by URI → why

    @property
    def skipped(self) -> Counter[str]:
        return Counter(self.passed_over.values())


def locate(uri: str, s3: S3Config) -> tuple[Any, str]:
    """(pyarrow FileSystem, path in it)."""
    if uri.startswith("s3://"):
        bucket, key = s3_key(uri)
        if not is_plain_key(key):
            from allmrec.core.storage.s3_keys import any_keys

            return any_keys(bucket, s3), f"{bucket}/{key}"
    return open_storage(uri, s3).arrow()


def list_files(uris: Sequence[str], suffixes: tuple[str, ...], s3: S3Config) -> Listing:
    """The files and tables that URIs mean, each once.

    A folder means the files below it, at any depth, that have one of the suffixes, or the table of a table format that
    it is. In a glob, `*`, `?` and `[…]` match characters of one name and `**` any folders; a file that matches
    is taken whatever its suffix, and a folder that matches means what it means itself. Names that begin with `_` or `.`
    are left out, unless the URI has them. Such characters in the name of an existing file or folder mean themselves.

    Raises:
        ValueError: what a URI means does not exist, cannot be listed, holds no such file, or is part of a table of a
            table format.
    """
    found = Listing()
    for uri in uris:
        look = _Look(uri, suffixes, s3)
        try:
            listing = look.listing()
            absent = not listing.files and not listing.tables and look.type(uri) == fs.FileType.NotFound
        except (OSError, re.error) as error:
            raise ValueError(f"cannot list {uri}: {str(error).strip().splitlines()[0]}") from None
        if absent:
            raise ValueError(f"no such path: {uri}")
        if not listing.files and not listing.tables:
            raise ValueError(f"{uri} has no {' or '.join(suffixes)} file")
        found.files |= listing.files
        found.tables |= listing.tables
        found.passed_over |= listing.passed_over
    found.files = dict(sorted(found.files.items()))
    return found


class _Look:
    """What one URI means."""

    def __init__(self, uri: str, suffixes: tuple[str, ...], s3: S3Config):
        self.uri, self.suffixes, self.s3 = uri, suffixes, s3
        self.found = Listing()
        self.marked: dict[str, str] = {}  # folders of tables that were met, by path → format

    def listing(self) -> Listing:
        root, glob = self._split()
        self.folder = f"{root}/" if root or self.uri.startswith("/") else ""
        self.filesystem, self.path = locate(self.folder or ".", self.s3)
        info = self.filesystem.get_file_info(self.path)
        if info.type == fs.FileType.File:
            self.found.files[root] = InputFile(root, info.size, info.mtime_ns or 0)
            return self.found
        for folder in (self.path, *_above(self.path)):
            self._mark(folder)
        if not glob:
            self._take_folder(self.path)
        for match, inside in self._match(self.path, glob.split("/")) if glob else ():
            if match.type == fs.FileType.Directory:
                self._take_folder(match.path)
            else:
                self._take(match, inside)
        return self.found

    def type(self, uri: str) -> Any:
        filesystem, path = locate(uri or ".", self.s3)
        return filesystem.get_file_info(path).type

    def _split(self) -> tuple[str, str]:
        """The URI before the first part with wildcards that is no name of something there, and the rest."""
        parts = self.uri.rstrip("/").split("/")
        for number, part in enumerate(parts):
            if _WILDCARD.search(part) and self.type("/".join(parts[: number + 1])) == fs.FileType.NotFound:
                return "/".join(parts[:number]), "/".join(parts[number:])
        return "/".join(parts), ""

    def _match(self, folder: str, parts: list[str]) -> Iterator[tuple[Any, str | None]]:
        """What a glob means below a folder, and what it leaves open of the path. Lists no folder that it rules out.

        With `**`, files come by themselves; else a folder comes for all that is below it.
        """
        deep = "**" in parts[0]
        pattern = re.compile(_regex("/".join(parts) if deep else parts[0]) + "(?P<inside>/.*)?")
        for info in self._list(folder, deep):
            match = pattern.fullmatch(_below(info.path, folder))
            is_folder = info.type == fs.FileType.Directory
            if match and (not is_folder if deep else len(parts) == 1):
                yield info, match["inside"]
            elif match and is_folder and not deep:
                yield from self._match(info.path, parts[1:])

    def _take_folder(self, folder: str) -> None:
        infos = [] if folder in self.marked else self._list(folder, deep=True)
        if folder in self.marked:
            self.found.tables[self._uri(folder)] = self.marked[folder]
            return
        for info in infos:
            if info.type == fs.FileType.File:
                self._take(info, _below(info.path, folder))

    def _take(self, info: Any, inside: str | None) -> None:
        """Take a file, if what is left open of its path lets it be input."""
        uri, why = self._uri(info.path), _passed_over(inside, info.size, self.suffixes)
        if why:
            self.found.passed_over[uri] = why
        if why in (None, EMPTY):
            for above in _above(info.path):
                if above in self.marked:
                    raise ValueError(
                        f"{self.uri} has files of a table of {self.marked[above]}, {self._uri(above)}; name the "
                        "folder of the table itself"
                    )
            self.found.files[uri] = InputFile(uri, info.size, info.mtime_ns or 0)

    def _list(self, folder: str, deep: bool) -> list[Any]:
        infos: list[Any] = self.filesystem.get_file_info(fs.FileSelector(folder, recursive=deep, allow_not_found=True))
        for info in infos:
            above, _, name = info.path.rpartition("/")
            if name in _MARKS and info.type == fs.FileType.Directory:
                self.marked[above] = _MARKS[name]
            elif name.endswith(METADATA) and above.endswith("/metadata"):
                self.marked.setdefault(above.removesuffix("/metadata"), ICEBERG)
        return infos

    def _mark(self, folder: str) -> None:
        """Tell whether a folder is a table's; one that cannot be looked into is none."""
        with suppress(OSError):
            self._list(f"{folder}/metadata", deep=False)
            for name, kind in _MARKS.items():
                if self.filesystem.get_file_info(f"{folder}/{name}").type == fs.FileType.Directory:
                    self.marked[folder] = kind

    def _uri(self, path: str) -> str:
        if path == self.path:
            return self.folder.rstrip("/")
        if path in _above(self.path):
            return f"s3://{path}" if self.uri.startswith("s3://") else path
        return self.folder + _below(path, self.path)


def _above(path: str) -> list[str]:
    """The folders above a path, from the innermost."""
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(len(parts) - 1, 0, -1) if parts[number - 1]]


def _below(path: str, folder: str) -> str:
    return path[len(folder) :].removeprefix("/")


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


def _passed_over(below: str | None, size: int, suffixes: tuple[str, ...]) -> str | None:
    """Why the file of a path below a folder is not read; None is a path that was named itself."""
    if below is not None and any(part.startswith(("_", ".")) for part in below.split("/")):
        return "hidden"
    if below is not None and not below.lower().endswith(suffixes):
        return "other suffix"
    return None if size else EMPTY


def partitions(uri: str) -> dict[str, str | None]:
    """The columns that Hive writes into the names of folders: `day=2024-01-01/part-0.parquet`."""
    folders = [folder.partition("=") for folder in uri.split("/")[:-1] if "=" in folder]
    return {key: None if value == _NULL else unquote(value) for key, _, value in folders}
