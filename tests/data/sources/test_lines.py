import gzip
import io
import itertools
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from allmrec.data.sources import lines as lines_module
from allmrec.data.sources.lines import Lines, read_lines


def each(path, *bounds, quote=None):
    """(number, line) of a range of the file, by default of all of it."""
    start, stop = bounds or (0, path.stat().st_size)
    parts = list(read_lines(LocalFileSystem(), str(path), start, stop, quote))
    return [(int(number), line) for part in parts for number, line in zip(part.numbers, part.each(), strict=True)]


def numbered(data):
    return [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line]


text = st.lists(st.binary(max_size=12).map(lambda line: line.translate(None, b"\r\n\xef")), max_size=8).map(b"\n".join)


@settings(deadline=None)
@given(data=text, cuts=st.lists(st.integers(0, 120), max_size=5), chunk=st.integers(15, 99))
def test_byte_ranges_assign_every_line_to_exactly_one_piece(tmp_path_factory, data, cuts, chunk):
    path = tmp_path_factory.mktemp("lines") / "log.json"
    path.write_bytes(data)
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "CHUNK", chunk)
        read = [line for start, stop in itertools.pairwise(bounds) for _, line in each(path, start, stop)]
        assert read == [line for _, line in numbered(data)]
        assert not data or each(path) == numbered(data)


@settings(deadline=None)
@given(data=text, start=st.integers(0, 9), length=st.integers(0, 9), seed=st.integers(0, 99))
def test_slices_and_filters_keep_lines_and_numbers(data, start, length, seed):
    lines = Lines.of(data)
    pairs = list(zip(lines.each(), lines.numbers.tolist(), strict=True))
    part = lines.slice(start, start + length)
    assert list(zip(part.each(), part.numbers.tolist(), strict=True)) == pairs[start : start + length]
    keep = np.random.default_rng(seed).random(len(lines)) < 0.5
    part = lines.filter(keep)
    kept = [pair for pair, wanted in zip(pairs, keep, strict=True) if wanted]
    assert list(zip(part.each(), part.numbers.tolist(), strict=True)) == kept


def test_nothing_is_sought_past_the_end(tmp_path):
    class Store(LocalFileSystem):
        """Its files cannot be sought past their end, as those of S3."""

        def open_input_file(self, path):
            return _Object(path)

    class _Object(io.FileIO):
        def size(self):
            return os.path.getsize(self.name)

        def seek(self, position, whence=0):
            assert position <= self.size()
            return super().seek(position, whence)

    (tmp_path / "log.csv").write_bytes(b"a\nb\n")
    for start, stop, expected in ((0, 1 << 20, [b"a", b"b"]), (2, 99, [b"b"]), (4, 99, []), (9, 99, [])):
        lines = read_lines(Store(), str(tmp_path / "log.csv"), start, stop)
        assert [line for part in lines for line in part.each()] == expected


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_files_are_read_whole(tmp_path, suffix):
    data = b"\r\n".join(b"%d" % number for number in range(1000))
    path = tmp_path / f"log.json.{suffix}"
    with pa.CompressedOutputStream(str(path), {"gz": "gzip", "zst": "zstd"}[suffix]) as stream:
        stream.write(data)
    assert each(path) == [(number + 1, b"%d" % number) for number in range(1000)]


def test_gzip_of_several_members(tmp_path):
    path = tmp_path / "log.json.gz"
    path.write_bytes(gzip.compress(b"a\nb\n") + gzip.compress(b"c\n"))
    assert each(path) == [(1, b"a"), (2, b"b"), (3, b"c")]


def test_marks_and_line_ends_of_windows_go(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\r\n b \r\n\xef\xbb\xbf")
    assert each(path) == [(1, b"a"), (3, b" b "), (4, b"\xef\xbb\xbf")]


def test_a_line_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "CHUNK", 10)
    path = tmp_path / "log.csv"
    path.write_bytes(b"a" * 35 + b"\nb\n")
    found = each(path)
    assert found[-1] == (2, b"b")
    assert b"".join(line for _, line in found[:-1]) == b"a" * 35 and {number for number, _ in found[:-1]} == {1}


def test_records_may_hold_newlines_between_quotes(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    records = [b'1,"two\nlines"', b'2,"a ""b""\n\n"', b"3,c"]
    path.write_bytes(b"\n".join(records) + b"\n")
    numbers = [1, 3, 6]
    assert each(path, quote=b'"') == list(zip(numbers, records, strict=True))
    monkeypatch.setattr(lines_module, "CHUNK", 5)
    assert each(path, quote=b'"') == list(zip(numbers, records, strict=True))


def test_a_quote_that_stays_open_costs_its_line_only(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "_RECORD", 100)
    good = [b'%d,"x\ny"' % number for number in range(100)]
    path = tmp_path / "log.csv"
    for chunk in (64, 1 << 20):
        monkeypatch.setattr(lines_module, "CHUNK", chunk)
        path.write_bytes(b"\n".join([*good, b'bad,"x', *(b"%d" % number for number in range(100)), b'"last']))
        found = each(path, quote=b'"')
        assert [line for _, line in found] == [*good, b'bad,"x', *(b"%d" % number for number in range(100)), b'"last']
        assert [number for number, _ in found] == [*range(1, 200, 2), *range(201, 303)]
