"""Lists of ids: whatever spelling of an id the log's reader takes, a list that has it has the id."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.core.storage import S3Config, open_storage
from allmrec.data.config import LINES, DataConfig, ListConfig, SourceConfig, by_suffix
from allmrec.data.prepare.clean import log_columns
from allmrec.data.sources.cells import as_ids
from allmrec.data.sources.lists import IdList, read_list, refuse_unknown
from allmrec.data.sources.source import open_source

S3 = S3Config()


def listed(path: Path | str, **config: Any) -> IdList:
    found = ListConfig(**by_suffix([str(path)], LINES), **config)
    return read_list("users", found, "user_id", S3, "nightly.users")


def ids(path: Path, content: bytes, **config: Any) -> list[str]:
    path.write_bytes(content)
    return sorted(listed(path, **config).spellings.to_pylist())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"u1\nu2\n"),
        ("a.txt", b"\xef\xbb\xbfu1\r\n\r\nu2"),
        ("a.txt", b'user_id\n"u1"\nu2\n'),
        ("A.CSV", b"u1\nu2\n"),
        ("a.csv", b'\xef\xbb\xbfuser_id\r\nu1\r\n"u2"\r\n'),
        ("a.csv", b"name,user_id\nAnn,u1\nBob,u2\nNobody,\n"),
        ("a.tsv", b"user_id\tname\nu1\tAnn\nu2\tBob\n"),
        ("a.jsonl", b'{"user_id": "u1"}\n{"user_id": "u2"}\n{"user_id": null}\n'),
        ("users", b"u1\nu2\n"),
    ],
)
def test_every_way_to_write_a_list(tmp_path: Path, name: str, content: bytes) -> None:
    assert ids(tmp_path / name, content) == ["u1", "u2"]


def test_a_line_is_an_id_whatever_it_holds(tmp_path: Path) -> None:
    assert ids(tmp_path / "a.txt", "x,y\na\tb\n007\n1.0\nc\u2028d\u0085e\n".encode()) == sorted(
        ["x,y", "a\tb", "007", "1", "c\u2028d\u0085e"]
    )


def test_spaces_around_an_id_are_not_meant_but_may_be_of_it(tmp_path: Path) -> None:
    assert ids(tmp_path / "a.txt", b"u1 \n  \n u2\n") == [" u2", "u1", "u1 ", "u2"]
    found = listed(tmp_path / "a.txt")
    is_known = np.array([id.strip() == "u1" for id in found.spellings.to_pylist()])
    assert len(found) == 2 and found.known(is_known) == 1


def test_a_list_is_whole_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"users: 1 lines of .*a\.txt cannot be read, the first is number 2"):
        ids(tmp_path / "a.txt", b'u1\n"u2\nu3\n')
    with pytest.raises(ValueError, match="cannot be read"):
        ids(tmp_path / "a.csv", b"user_id\nM\xfcller\n")
    assert ids(tmp_path / "a.csv", b"user_id\nM\xfcller\n", encoding="latin-1") == ["Müller"]
    for content in (b"", b"user_id\n", b" \n"):
        with pytest.raises(ValueError, match=r"lists nothing|is empty"):
            ids(tmp_path / "a.csv", content)
    with pytest.raises(ValueError, match=r"'user_id' is missing .* name the right one in nightly\.users\.columns"):
        ids(tmp_path / "a.csv", b"u1,Ann\nu2,Bob\n")


@pytest.mark.parametrize(
    ("listed", "known", "least", "is_accepted"),
    [(4, 2, 0.5, True), (4, 1, 0.5, False), (4, 0, 0.01, False), (4, 0, 0, True), (0, 0, 0, False), (3, 3, 1, True)],
)
def test_a_list_must_be_known(listed: int, known: int, least: float, is_accepted: bool) -> None:
    if is_accepted:
        refuse_unknown("data.excluded_users", listed, known, least)
    else:
        with pytest.raises(ValueError, match=r"data.excluded_users.*(lists nothing|of 4 ids listed, [01] are known)"):
            refuse_unknown("data.excluded_users", listed, known, least)


TEXT = st.text(st.characters(exclude_characters="\x1f\x00\n\r", exclude_categories=["Cs"]), min_size=1, max_size=6)
WRITTEN = st.one_of(TEXT, st.integers(-(2**53), 2**53).map(str), st.sampled_from(["1.0", "007", " x ", "a,b", '"q"']))
PADDING = st.sampled_from(["", " ", "\t ", "\u00a0"])


@settings(max_examples=200, deadline=None)
@given(st.lists(WRITTEN, min_size=1, max_size=5), PADDING, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_spelling_that_the_logs_reader_takes_is_in_the_list(
    tmp_path_factory: Any, texts: list[str], padding: str, end: str, mark: bool
) -> None:
    """The same fields in a CSV log and in a list, there perhaps with spaces around: the list has all ids of the log."""
    folder = tmp_path_factory.mktemp("lists")
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    log, spelled = folder / "log.csv", folder / "list.csv"
    rows = ["user_id,item_id,timestamp", *(f"{text},i,1" for text in quoted)]
    log.write_bytes("\n".join(rows).encode())
    padded = [f'"{padding}{text[1:-1]}{padding}"' if text[1:-1].strip() == text[1:-1] else text for text in quoted]
    lines = ["user_id", *padded]
    spelled.write_bytes((b"\xef\xbb\xbf" if mark else b"") + end.join(lines).encode())
    source = open_source("log", SourceConfig(paths=[str(log)], format="csv"), S3, log_columns(DataConfig()))
    users = [as_ids(table.column("user_id")).to_pylist() for piece in source.pieces for table in source.read(piece)]
    known = {user for some in users for user in some if user and user.strip()}
    if known:
        assert known <= {*listed(spelled).spellings.to_pylist()}


TYPES = [pa.int32(), pa.uint64(), pa.float64(), pa.string(), pa.large_string(), pa.string_view(), pa.binary()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), st.sampled_from(TYPES), st.booleans())
def test_any_type_that_the_logs_reader_takes_is_in_the_list(
    tmp_path_factory: Any, numbers: list[int], kind: pa.DataType, encoded: bool
) -> None:
    path = tmp_path_factory.mktemp("lists") / "a.parquet"
    texts = pa.array(map(str, numbers))
    column = texts.cast(kind) if not pa.types.is_floating(kind) else pa.array(map(float, numbers), kind)
    if encoded and not pa.types.is_string_view(kind):
        column = column.dictionary_encode()
    pq.write_table(pa.table({"user_id": column}), path)
    assert {*map(str, numbers)} == {*listed(path).spellings.to_pylist()}


@pytest.mark.s3
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.txt.gz"])
def test_lists_on_s3(s3: S3Config, s3_uri: str, name: str) -> None:
    data = b'user_id\r\nu1 \r\n"u2"\r\n'
    open_storage(s3_uri, s3).write(name, gzip.compress(data) if name.endswith("gz") else data)
    found = ListConfig(**by_suffix([f"{s3_uri}/{name}"], LINES))
    assert len(read_list("users", found, "user_id", s3, "nightly.users")) == 2
