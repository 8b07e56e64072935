"""Tables of Iceberg, by `pyiceberg`, without a catalogue: what is named is a table's folder or its metadata file."""

import gzip
import io
import re
from functools import partial
from typing import Any

import pyarrow as pa
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.exceptions import ValidationError
from pyiceberg.io import FileIO
from pyiceberg.io import InputFile as IcebergInput
from pyiceberg.manifest import FileFormat
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import StaticTable
from pyiceberg.table.metadata import TableMetadataUtil
from pyiceberg.table.name_mapping import NameMapping
from pyiceberg.transforms import IdentityTransform

from allmrec.core.hashing import fingerprint
from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.data.sources.files import METADATA, InputFile
from allmrec.data.sources.snapshots import Layout, Snapshot, one_line

_NUMBER = b"PARQUET:field_id"
_NUMBERED = re.compile(r"v?(\d+)[-.].*")


def open_snapshot(uri: str, version: int | None, s3: S3Config) -> Snapshot:
    location = uri if uri.endswith(METADATA) else _newest_metadata(open_storage(uri, s3).at("metadata"), uri)
    store = _Store(s3)
    text = store.new_input(location).open().read()
    try:
        metadata = TableMetadataUtil.parse_raw((gzip.decompress(text) if ".gz." in location else text).decode())
        table = StaticTable(("table",), metadata, location, store, NoopCatalog("none"))
        wanted = table.snapshot_by_id(version) if version is not None else table.current_snapshot()
        if wanted is None and version is not None:
            known = ", ".join(str(snapshot.snapshot_id) for snapshot in metadata.snapshots)
            raise ValueError(f"has no snapshot {version}; those in {location} are {known}")
        return _snapshot(table, wanted.snapshot_id) if wanted else Snapshot((), (), {}, "none")
    except (ValueError, ValidationError, OSError, NotImplementedError) as error:
        raise ValueError(f"{uri}: cannot read the table: {one_line(error)}") from None


def _snapshot(table: StaticTable, version: int) -> Snapshot:
    scan = table.scan(snapshot_id=version)
    schema, mapping = scan.projection(), table.name_mapping()
    numbers = {entry.name: entry.field_id for entry in schema.fields}
    files, layouts = [], {}
    for task in scan.plan_files():
        file, deletes = task.file, sorted(_uri(delete.file_path) for delete in task.delete_files)
        if other := {file.file_format, *(delete.file_format for delete in task.delete_files)} - {FileFormat.PARQUET}:
            raise ValueError(
                f"snapshot {version} has files of {', '.join(sorted(kind.value for kind in other))}, and only Parquet "
                "is read; rewrite them (rewrite_data_files) or export the table"
            )
        values = _values(schema, table.specs()[file.spec_id], file.partition)
        uri, reading = _uri(file.file_path), fingerprint([numbers, deletes])
        files.append(InputFile(uri, file.file_size_in_bytes, 0, reading, str(version)))
        layouts[uri] = partial(_layout, numbers, mapping, values, tuple(deletes), file.file_path)
    return Snapshot(tuple(files), tuple(numbers), layouts, str(version))


def _values(schema: Schema, spec: PartitionSpec, partition: Any) -> dict[str, str | None]:
    """What a file's partition says of columns, as text."""
    values: dict[str, str | None] = {}
    for number, part in enumerate(spec.fields):
        if isinstance(part.transform, IdentityTransform) and (name := schema.find_column_name(part.source_id)):
            value = partition[number]
            text = part.transform.to_human_string(schema.find_type(part.source_id), value)
            values[name] = None if value is None else text
    return values


def _layout(
    numbers: dict[str, int],
    mapping: NameMapping | None,
    values: dict[str, str | None],
    deletes: tuple[str, ...],
    location: str,
    schema: pa.Schema,
) -> Layout:
    """By the numbers of fields; files that Iceberg took over from other tables have none and go by names."""
    inside = {int(entry.metadata[_NUMBER]): entry.name for entry in schema if _NUMBER in (entry.metadata or {})}
    if not inside and mapping is not None:
        known = [(entry.field_id, name) for entry in mapping.root for name in entry.names if entry.field_id is not None]
        inside = {number: name for number, name in known if name in schema.names}
    elif not inside:
        inside = {number: name for name, number in numbers.items() if name in schema.names}
    columns = {name: inside[number] for name, number in numbers.items() if number in inside}
    return Layout(columns, {name: text for name, text in values.items() if name not in columns}, deletes, location)


def _newest_metadata(folder: Storage, uri: str) -> str:
    """The metadata file that a table without a catalogue means. Raises ValueError where that is not clear."""
    names = [entry.key for entry in folder.list() if entry.key.endswith(METADATA)]
    if folder.exists("version-hint.text"):
        hint = folder.read("version-hint.text").decode().strip()
        newest = [
            name for name in names if name in (hint, f"{hint}{METADATA}", f"v{hint}{METADATA}", f"v{hint}.gz{METADATA}")
        ]
    else:
        number = {name: int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))}
        newest = [name for name in number if number[name] == max(number.values())]
    if len(newest) != 1:
        raise ValueError(
            f"{uri}: only the table's catalogue knows which of metadata/*{METADATA} is current; name that file "
            "instead of the folder"
        )
    return folder.name(newest[0])


class _Store(FileIO):
    """The stores of this project, for the library to read."""

    def __init__(self, s3: S3Config):
        super().__init__()
        self.s3 = s3
        self.folders: dict[str, Storage] = {}  # each has a client of its own

    def new_input(self, location: str) -> IcebergInput:
        folder, _, key = _uri(location).rpartition("/")
        if folder not in self.folders:
            self.folders[folder] = open_storage(folder, self.s3)
        return _Object(location, self.folders[folder], key)

    def new_output(self, location: str) -> Any:
        raise NotImplementedError("tables are only read")

    delete = new_output  # type: ignore[assignment]


class _Object(IcebergInput):
    def __init__(self, location: str, folder: Storage, key: str):
        super().__init__(location)
        self.folder, self.key = folder, key

    def __len__(self) -> int:
        return len(self.folder.read(self.key))

    def exists(self) -> bool:
        return self.folder.exists(self.key)

    def open(self, seekable: bool = True) -> Any:
        return io.BytesIO(self.folder.read(self.key))


def _uri(location: str) -> str:
    """As the stores here are named."""
    return re.sub(r"^s3[an]://", "s3://", location)
