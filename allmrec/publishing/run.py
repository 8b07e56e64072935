"""A nightly run in the store: what makes it one run, its shards, and how they become visible, all at once.

    _runs/run_date=D/identity.json     put-if-absent: the run that has the date, and what it is made of
    _runs/run_date=D/<run id>/attempts/part-00003-<random>.parquet     one attempt at a shard
    _runs/run_date=D/<run id>/shards/part-00003.json     put-if-absent: the attempt that won
    run_date=D/part-00003.parquet      copies of the winners, once all have passed the audit
    run_date=D/_vectors/…              likewise, where vectors are published (`allmrec.publishing.vectors`)
    run_date=D/_SUCCESS                put-if-absent: the manifest of these files

and then a list of them for engines that read such lists, and an entry of the publish log. Only put-if-absent decides
anything, so the result is right however often the run is at work at once, and a run killed between any two operations
resumes. Readers that follow the log, `latest.json` or `_SUCCESS` see whole runs only. Nothing reads `_runs/` after
publishing: a lifecycle rule of the store may expire it.

A run that replaces another one of its date takes over `identity.json`, copies its shards beside the published ones
(part-00003-<run id>.parquet), and then writes `_SUCCESS`: both under the lease of the date, as two processes cannot
decide a second time by put-if-absent. Whatever a process of the replaced run still writes has other names.

Leaves who works on a run to `allmrec.publishing.lease`, a shard's rules to `allmrec.nightly.audit`, and what happens to
a published run later to `allmrec.publishing.maintenance`.
"""

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pyarrow as pa

from allmrec.core.artifacts import file_entry, from_parquet, sha256, shard_name, to_parquet
from allmrec.core.commit_log import dump_json, find_json, last_number, load_json
from allmrec.core.hashing import fingerprint
from allmrec.core.storage import Storage
from allmrec.publishing.lease import Lease
from allmrec.publishing.log import announce, manifest_key, run_key, work_folder
from allmrec.publishing.vectors import folder, named_files, schema_of
from schemas import check
from schemas.recommendations import SCHEMA

Counters = Mapping[str, Mapping[str, float]]
_PARALLEL = 16  # small requests to the store at a time


@dataclass(frozen=True)
class Run:
    """The run of one date. Can be pickled: workers commit the shards that they finish."""

    storage: Storage  # where recommendations are published
    run_date: date
    identity: dict[str, Any]
    run_id: str
    replaces: str | None = None  # the run that had the date before

    @classmethod
    def of(cls, storage: Storage, run_date: date, identity: Mapping[str, Any]) -> "Run":
        """The run of a date that is made of `identity`, JSON-able. Nothing is begun; see `open`."""
        plain = json.loads(json.dumps(identity, default=str))
        return cls(storage, run_date, plain, fingerprint({"run_date": str(run_date), "identity": plain})[:16])

    @classmethod
    def open(
        cls, storage: Storage, run_date: date, identity: Mapping[str, Any], replacing: Lease | None = None
    ) -> "Run":
        """Begin the run of a date, or resume it.

        Args:
            identity: JSON-able; what the result depends on: bundle, input snapshot, candidate and ranking config,
                code version.
            replacing: the date's lease, to begin the run although the date has another one, begun or published. What
                is published stays so until this run is.

        Raises:
            ValueError: the store cannot be trusted with it, or this date has another run; names what differs.
            RunHeld: another process has taken the date over.
        """
        storage.probe_create()
        run = cls.of(storage, run_date, identity)
        published, key = find_json(storage, manifest_key(run_date)), run_key(run_date)
        if published and published["run_id"] == run.run_id:
            return run
        if published is None and storage.create(key, dump_json(run._record())):
            return run
        begun = find_json(storage, key)
        current = published or begun
        if begun and begun["run_id"] == run.run_id:
            resumed = replace(run, replaces=begun.get("replaces"))
            if published is None or published["run_id"] == resumed.replaces:
                return resumed
        assert current is not None
        if replacing is None:
            raise run.is_another(current, manifest_key(run_date) if published else key)
        run = replace(run, replaces=current["run_id"])
        replacing.check()
        storage.write(key, dump_json(run._record()))
        return run

    def finished_shards(self) -> set[int]:
        """Shards that need not be made again."""
        entries = self.storage.list(f"{self.work}/shards/part-")
        return {int(entry.key.removesuffix(".json").rpartition("-")[2]) for entry in entries}

    def commit_shard(
        self,
        shard: int,
        table: pa.Table,
        stats: Counters | None = None,
        vectors: Mapping[str, pa.Table] | None = None,
    ) -> bool:
        """Offer an attempt at a shard; returns whether it won. A losing attempt leaves nothing.

        Args:
            table: of the `recommendations` schema, at most 5 GB as Parquet.
            stats: counts by kind and name, which the published manifest adds up over the shards.
            vectors: that are published with the shard, by kind; see `allmrec.publishing.vectors`.
        """
        attempt = f"{self.work}/attempts/part-{shard:05d}-{secrets.token_hex(8)}"
        entry = self._write_attempt(f"{attempt}.parquet", check(table, SCHEMA)) | {"stats": dict(stats or {})}
        if vectors is not None:
            entry["vectors"] = {
                kind: self._write_attempt(f"{attempt}-{kind}.parquet", check(part, schema_of(kind, part)))
                for kind, part in vectors.items()
            }
        if self.storage.create(self._entry_key(shard), dump_json(entry)):
            return True
        for file in _files(entry):
            self.storage.delete(file["file"])
        return False

    def _write_attempt(self, key: str, table: pa.Table) -> dict[str, Any]:
        data = to_parquet(table)
        self.storage.write(key, data)
        return file_entry(data, file=key, rows=table.num_rows)

    def read_shard(self, shard: int) -> tuple[pa.Table, str]:
        """A finished shard as stored, and a digest of all its files. Raises ValueError when it is damaged."""
        entry = load_json(self.storage, self._entry_key(shard))
        return self._read_attempt(shard, entry), _digest(entry)

    def read_shard_vectors(self, shard: int) -> dict[str, pa.Table]:
        """Its vectors by kind, of which there may be none. Raises ValueError when they are damaged."""
        files = load_json(self.storage, self._entry_key(shard)).get("vectors", {})
        return {kind: self._read_attempt(shard, file) for kind, file in files.items()}

    def _read_attempt(self, shard: int, entry: dict[str, Any]) -> pa.Table:
        try:
            data = self.storage.read(entry["file"])
        except FileNotFoundError:
            raise self._unusable(shard, entry, "is missing") from None
        if sha256(data) != entry["sha256"]:
            raise self._unusable(shard, entry, "is damaged")
        return from_parquet(data)

    def shard_stats(self, shard: int) -> Counters:
        """What the attempt that won said of itself."""
        return load_json(self.storage, self._entry_key(shard))["stats"]

    def published(self) -> dict[str, Any] | None:
        """The log entry that made this run visible, or None.

        Where the run was killed between `_SUCCESS` and `latest.json`, what is missing is added.
        """
        manifest = self._published_manifest()
        return announce(self.storage, manifest) if manifest else None

    def publish(self, num_shards: int, audited: Mapping[int, str], lease: Lease | None = None) -> dict[str, Any]:
        """Make the run visible, and the current one; returns its log entry. Publishing again changes nothing.

        Args:
            audited: what `audit` returned for each shard.

        Raises:
            ValueError: a shard is not finished or not what was audited; nothing is published.
            RunHeld: another process has taken the run over.
        """
        manifest = self._published_manifest()
        if manifest is None:
            manifest = self._copy_shards(num_shards, audited, lease)
            if lease:
                lease.check()
            if self.replaces is not None:
                self.storage.write(manifest_key(self.run_date), dump_json(manifest))
            elif not self.storage.create(manifest_key(self.run_date), dump_json(manifest)):
                manifest = self._published_manifest()
                assert manifest is not None
        return announce(self.storage, manifest)

    def _copy_shards(self, num_shards: int, audited: Mapping[int, str], lease: Lease | None) -> dict[str, Any]:
        """Copy the winners to where readers look; returns the manifest of the copies."""
        shards = range(num_shards)
        missing = sorted(set(shards) - (self.finished_shards() & set(audited)))
        if missing:
            raise ValueError(f"run {self.run_id} of {self.run_date}: shards {missing} are not finished and audited")
        with ThreadPoolExecutor(_PARALLEL) as pool:
            entries = list(pool.map(lambda shard: load_json(self.storage, self._entry_key(shard)), shards))
            for shard, entry in zip(shards, entries, strict=True):
                if _digest(entry) != audited[shard]:
                    raise self._unusable(shard, entry, "is not what was audited")
            if lease:
                lease.check()
            files = [self._published_file(shard, entry) for shard, entry in zip(shards, entries, strict=True)]
            vectors = {
                kind: [self._published_file(shard, entry["vectors"][kind], kind) for shard, entry in enumerate(entries)]
                for kind in entries[0].get("vectors", {})
            }
            published = named_files({"files": files, "vectors": vectors})
            attempts = [file["file"] for group in zip(*map(_files, entries), strict=True) for file in group]
            list(pool.map(self.storage.copy, attempts, [file["key"] for file in published]))
        self._check_copies({file["key"]: file["size"] for file in published})
        stats: dict[str, Counter[str]] = {}
        for entry in entries:
            for kind, counts in entry["stats"].items():
                stats.setdefault(kind, Counter()).update(counts)
        return {
            "run_date": str(self.run_date),
            "run_id": self.run_id,
            "identity": self.identity,
            "rows": sum(entry["rows"] for entry in entries),
            "files": files,
            **({"vectors": vectors} if vectors else {}),
            "facts": stats,
            "log": last_number(self.storage),  # the run's own entry comes behind this number
        }

    def _check_copies(self, expected: dict[str, int]) -> None:
        """Raises ValueError when the date's folder holds other Parquet files than these: a reader may glob it.

        Beside the files of a run that is replaced, only its own count.
        """
        prefixes = (f"run_date={self.run_date}/part-", folder(self.run_date))
        there = {entry.key: entry.size for prefix in prefixes for entry in self.storage.list(prefix)}
        if self.replaces is not None:
            there = {key: size for key, size in there.items() if key in expected}
        wrong = sorted(key for key in expected.keys() | there.keys() if expected.get(key) != there.get(key))
        if wrong:
            names = ", ".join(self.storage.name(key) for key in wrong[:5])
            raise ValueError(f"{len(wrong)} files are not of run {self.run_id}; delete them and run again: {names}")

    def _published_manifest(self) -> dict[str, Any] | None:
        """None while the date has no published run, or the one that this run replaces."""
        key = manifest_key(self.run_date)
        manifest = find_json(self.storage, key)
        if manifest is None or manifest["run_id"] == self.replaces:
            return None
        if manifest["run_id"] != self.run_id:
            raise self.is_another(manifest, key)
        return manifest

    def is_another(self, other: Mapping[str, Any], key: str) -> ValueError:
        """The error of a date that has another run, whose record is at `key`; it names what differs."""
        return ValueError(
            f"{self.storage.name(key)} is of another run ({other['run_id']}, this is {self.run_id}): "
            f"{'; '.join(_differences(other['identity'], self.identity))}. Replace that run with `allmrec nightly "
            "--replace`, or restore what it was made of"
        )

    def _record(self) -> dict[str, Any]:
        record = {"run_id": self.run_id, "identity": self.identity}
        return record if self.replaces is None else {**record, "replaces": self.replaces}

    def _published_file(self, shard: int, entry: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
        name = shard_name(shard)
        if self.replaces is not None:
            name = name.replace(".parquet", f"-{self.run_id}.parquet")
        where = f"run_date={self.run_date}/" if kind is None else f"{folder(self.run_date, kind)}/"
        return {"key": where + name, **{name: entry[name] for name in ("sha256", "size", "rows")}}

    def _unusable(self, shard: int, entry: dict[str, Any], how: str) -> ValueError:
        return ValueError(
            f"{self.storage.name(entry['file'])} {how}; to make shard {shard} again, delete "
            f"{self.storage.name(self._entry_key(shard))} and run again"
        )

    def _entry_key(self, shard: int) -> str:
        return f"{self.work}/shards/part-{shard:05d}.json"

    @property
    def work(self) -> str:
        """The folder of the run's work in progress."""
        return f"{work_folder(self.run_date)}/{self.run_id}"


def stamped(rows: pa.Table, run: Run, schema: pa.Schema) -> pa.Table:
    """Rows as rows of this run and schema, which adds the run's date, id and bundle."""
    same = {"run_date": run.run_date, "bundle": run.identity["bundle"], "run_id": run.run_id}
    columns = {name: pa.repeat(pa.scalar(value), len(rows)) for name, value in same.items()}
    own = [name for name in schema.names if name not in same]
    columns |= {name: rows.column(name) for name in own}
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _files(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of a shard's entry: its recommendations, and vectors by kind."""
    return [entry, *entry.get("vectors", {}).values()]


def _digest(entry: Mapping[str, Any]) -> str:
    """Of all its files."""
    digests = [file["sha256"] for file in _files(entry)]
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode())


def _differences(theirs: Any, ours: Any, path: str = "") -> Iterator[str]:
    """`path.to.field was x, is y` for every leaf that differs."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            yield from _differences(theirs.get(name), ours.get(name), f"{path}.{name}" if path else name)
    elif theirs != ours:
        yield f"{path} was {theirs!r} and is {ours!r}"
