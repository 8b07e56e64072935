import pytest

from allmrec.data.files import list_files, partitions
from allmrec.storage import S3Config, open_storage

FILES = ["a.csv", "b.csv.gz", "_b.csv", "c/d.csv", "c/e.txt", "c/_f/g.csv", "c/h/i.csv", "day=1/j.csv", "x[1].csv"]
EXPECTED = {
    "": ["a.csv", "b.csv.gz", "c/d.csv", "c/h/i.csv", "day=1/j.csv", "x[1].csv"],
    "/": ["a.csv", "b.csv.gz", "c/d.csv", "c/h/i.csv", "day=1/j.csv", "x[1].csv"],
    "/c": ["c/d.csv", "c/h/i.csv"],
    "/a.csv": ["a.csv"],
    "/c/e.txt": ["c/e.txt"],
    "/*.csv": ["a.csv", "x[1].csv"],
    "/?.csv*": ["a.csv", "b.csv.gz"],
    "/[!a].csv.gz": ["b.csv.gz"],
    "/x[1].csv": ["x[1].csv"],
    "/_*.csv": ["_b.csv"],
    "/c/*": ["c/d.csv", "c/e.txt", "c/h/i.csv"],
    "/*/*.csv": ["c/d.csv", "day=1/j.csv"],
    "/**/*.csv": ["a.csv", "c/d.csv", "c/h/i.csv", "day=1/j.csv", "x[1].csv"],
    "/c/**/i.csv": ["c/h/i.csv"],
    "/**/h": ["c/h/i.csv"],
    "/day=*": ["day=1/j.csv"],
    "/day=*/": ["day=1/j.csv"],
    "/c/**": ["c/d.csv", "c/e.txt", "c/h/i.csv"],
}


def test_paths_folders_and_globs(storage, request):
    s3 = request.getfixturevalue("s3") if storage.uri.startswith("s3://") else S3Config()
    for name in FILES:
        open_storage(storage.uri, s3).write(name, b"1")
    for glob, expected in EXPECTED.items():
        found = list_files([f"{storage.uri}{glob}"], (".csv", ".csv.gz"), s3).files.values()
        assert [file.uri.removeprefix(f"{storage.uri}/") for file in found] == expected, glob
        assert all(file.size == 1 for file in found)
    both = [f"{storage.uri}/a.csv", f"{storage.uri}/?.csv"]
    assert len(list_files(both, (".csv",), s3).files) == 1
    absent = "no such path"
    for glob, message in {"/z*": absent, "/z": absent, "/c/h*": absent, "/[z-a]": "cannot", "/c": "no .parq"}.items():
        with pytest.raises(ValueError, match=message):
            list_files([f"{storage.uri}{glob}"], (".parquet",), s3)


def test_relative_paths_stay_relative(tmp_path, monkeypatch):
    open_storage(str(tmp_path)).write("in/a.csv", b"1")
    monkeypatch.chdir(tmp_path)
    for path in ("in", "in/", "in/*.csv", "i*", "*/a.csv", "**/a.csv"):
        assert list(list_files([path], (".csv",), S3Config()).files) == ["in/a.csv"]


def test_columns_in_the_names_of_folders():
    assert partitions("s3://b/log/day=2024-01-01/kind=a%2Fb/x=y.csv") == {"day": "2024-01-01", "kind": "a/b"}
    assert partitions("day=__HIVE_DEFAULT_PARTITION__/a.csv") == {"day": None}
