"""Logs and catalogues as programs write them: the same rows in any type, format, dialect and compression.

`Input(seed)` draws one. What should become of it is told from the rows alone, whatever they are written as.
"""

import datetime as dt
import gzip
import io
import json
import uuid
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.data.config import DataConfig
from schemas import rejected

TEXTS = [
    "007",
    "Ann",
    "a b",
    'say "hi"',
    "it's",
    "C:\\new",
    "back\\",
    "x,y",
    "p|q",
    "5;6",
    "1e3",
    "a::b",
    "c¦d",
    "é",
    "ü-1",
    "tab\there",
]
TITLES = [
    "Desk Lamp",
    'The "Best" Lamp',
    "Rug, 2 m",
    "C:\\mugs\\new",
    "Café",
    "it's a | b; c",
    "1984",
    '5" pipe',
    "2.0",
]
YES = ["true", "True", "TRUE", "t", "yes", "Y", "on", "1", "1.0", " in_stock ", "12"]
NO = ["false", "False", "f", "no", "N", "off", "0", "0.0", "out of stock"]
ZONES = ["", "Z", " UTC", "+00", "+00:00", "+0000", "+05:30", "-08"]
EPOCH = dt.datetime(1970, 1, 1)
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
NAMES = ["user_id", "item_id", "timestamp", "rating", "event"]


class Input:
    """Rows, what they are written as, and what should become of them."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.format = self.one_of(["parquet", "parquet", "csv", "csv", "jsonl", "literal"])
        self.ids = self.one_of(["numbers", "texts", "uuids"])
        self.unit = self.one_of(["s", "ms", "us"])
        self.users, self.items = self._ids(8), self._ids(8)
        self.rows = [self._row() for _ in range(int(self.rng.integers(1, 60)))]
        self.dialect = self._dialect() if self.format == "csv" else {}
        self.settings = {"format": self.format, "timestamp_unit": self.unit, **self._settings()}
        if self.dialect.get("encoding", "utf-8") != "utf-8" and self.dialect["delimiter"] == "¦":
            self.dialect["delimiter"] = ";"
        self.data = DataConfig(
            min_rating=self.one_of([None, 3.0]), events=self.one_of([None, ["buy", "cart"]]), num_shards=3
        )
        self.suffix = {"parquet": ".parquet", "csv": ".csv", "jsonl": ".jsonl", "literal": ".json"}[self.format]
        self.suffix += "" if self.format == "parquet" else self.one_of(["", "", ".gz", ".zst"])
        self.malformed, self.told = 0, False

    def one_of(self, options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _ids(self, count: int) -> list[str]:
        if self.ids == "numbers":
            return [str(number) for number in self.rng.choice(10_000, count, replace=False)]
        if self.ids == "uuids":
            return [str(uuid.UUID(bytes=self.rng.bytes(16))) for _ in range(count)]
        return self.rng.choice(TEXTS, count, replace=False).tolist()

    def _row(self) -> dict:
        """One event; `timestamp` is in microseconds, whole in the unit."""
        us = int(self.rng.integers(1_500_000_000, 1_700_000_000)) * 1_000_000
        us += int(self.rng.integers(1_000_000 // UNITS[self.unit])) * UNITS[self.unit]
        if self.chance(0.05):
            us = self.one_of([-3_000_000_000_000_000, 5_000_000_000_000_000])
        strangers = self._ids(1)
        return {
            "user_id": None if self.chance(0.05) else self.one_of(self.users),
            "item_id": None if self.chance(0.05) else self.one_of(self.items + strangers),
            "timestamp": None if self.chance(0.05) else us,
            "rating": None if self.chance(0.1) else float(self.rng.integers(2, 11)) / 2,
            "event": None if self.chance(0.1) else self.one_of(["view", "cart", "buy"]),
        }

    def expected(self) -> tuple[list[tuple], dict[str, int]]:
        """The good rows (user, item, microseconds), sorted, and how many others there are for each reason."""
        good, reasons = [], {rejected.MALFORMED: self.malformed} if self.malformed else {}
        for row in self.rows:
            reason = self._fault(row)
            if reason is None:
                good.append((row["user_id"], row["item_id"], row["timestamp"]))
            else:
                reasons[reason] = reasons.get(reason, 0) + 1
        return sorted(good), reasons

    def _fault(self, row: dict) -> str | None:
        time = row["timestamp"]
        if row["user_id"] is None or row["item_id"] is None:
            return rejected.NULL_ID
        if time is None:
            return rejected.BAD_TIMESTAMP
        if not 631_152_000_000_000 <= time <= 4_102_444_800_000_000:
            return rejected.TIMESTAMP_OUT_OF_RANGE
        if self.data.events and row["event"] not in self.data.events:
            return "other_event"
        if self.data.min_rating and not (row["rating"] or 0) >= self.data.min_rating:
            return "below_min_rating"
        return None if row["item_id"] in self.items else rejected.UNKNOWN_ITEM

    # How the rows are written.

    def _dialect(self) -> dict:
        quote = self.one_of(['"', '"', "'", None])
        return {
            "delimiter": self.one_of([",", ";", "\t", "|", "::", "¦"]),
            "quote": quote,
            "escape": "\\" if quote is None else self.one_of([None, "\\"]),
            "encoding": self.one_of(["utf-8", "utf-8", "latin-1", "cp1252"]),
        }

    def _settings(self) -> dict:
        if self.format != "csv":
            return {}
        self.null = self.one_of(["", "NULL", "\\N"])
        keys = {**self.dialect, "nulls": [self.null] if self.null else []}
        if keys["encoding"] != "utf-8" and keys["delimiter"] == "¦":
            keys["delimiter"] = self.dialect["delimiter"] = ";"
        return keys

    def files(self) -> list[bytes]:
        """One to three files of the log."""
        cuts = sorted(self.rng.integers(0, len(self.rows) + 1, int(self.rng.integers(0, 3))).tolist())
        write = self._parquet if self.format == "parquet" else self._text
        bounds = zip([0, *cuts], [*cuts, len(self.rows)], strict=True)
        return [write(self.rows[start:stop]) for start, stop in bounds]

    def catalogue(self) -> tuple[list[dict], bytes]:
        """The items with title and availability as they should come out, and the file (with one unreadable row)."""
        items = [
            {"item_id": item, "title": self.one_of(TITLES), "available": self.one_of([None, True, False])}
            for item in self.items
        ]
        words = {None: ["", " "], True: YES, False: NO}
        rows = [{**item, "available": self.one_of(words[item["available"]])} for item in items]
        rows.append({"item_id": "odd", "title": "odd", "available": "perhaps"})
        if self.format == "parquet":
            buffer = io.BytesIO()
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            kind = self._id_type()
            columns["item_id"] = self._as_type([*columns["item_id"][:-1], None], kind)
            pq.write_table(pa.table(columns), buffer)
            return items, buffer.getvalue()
        return items, self._lines(rows, lambda name, value: value)

    def _id_type(self) -> str:
        common = ["string", "large_string", "string_view", "dictionary", "binary", "categorical"]
        numbers = ["int32", "int64", "uint64", "float64", "decimal", "decimal2", "pandas", "int dictionary"]
        return self.one_of(common + {"numbers": numbers, "texts": [], "uuids": ["uuid", "fixed"] * 2}[self.ids])

    def _as_type(self, ids: list[str | None], kind: str) -> pa.Array:
        numbers = [None if value is None or not value.isdigit() else int(value) for value in ids]
        if not any(value is not None for value in ids) and self.chance(0.5):
            return pa.nulls(len(ids))
        match kind:
            case "dictionary":
                return pa.array(ids, pa.string()).dictionary_encode()
            case "categorical":
                return pl.Series(ids, dtype=pl.Categorical).to_arrow()
            case "binary":
                return pa.array([value and value.encode() for value in ids], pa.binary())
            case "uuid":
                return pa.array([value and uuid.UUID(value).bytes for value in ids], pa.uuid())
            case "fixed":
                return pa.array([value and uuid.UUID(value).bytes for value in ids], pa.binary(16))
            case "decimal" | "decimal2":
                decimals = [None if number is None else Decimal(number) for number in numbers]
                return pa.array(decimals, pa.decimal128(38, 0 if kind == "decimal" else 2))
            case "pandas":
                return pa.Array.from_pandas(pd.Series(numbers, dtype="float64"))
            case "int dictionary":
                return pa.array(numbers, pa.int64()).dictionary_encode()
            case "int32" | "int64" | "uint64" | "float64":
                return pa.array(numbers, pa.type_for_alias(kind))
        return pa.array(ids, pa.type_for_alias(kind))

    def _parquet(self, rows: list[dict]) -> bytes:
        times, unit = [row["timestamp"] for row in rows], UNITS[self.unit]
        ratings = [row["rating"] for row in rows]
        whole = [None if time is None else time // unit for time in times]
        kind = self.one_of(["int", "float", "decimal", "timestamp", "zoned", "text", "epoch text", "polars"])
        column = {
            "int": lambda: pa.array(whole, pa.int64()),
            "float": lambda: pa.array([np.nan if value is None else value / 1.0 for value in whole], pa.float64()),
            "decimal": lambda: pa.array([None if v is None else Decimal(v) for v in whole], pa.decimal128(38, 3)),
            "timestamp": lambda: pa.array(times, pa.timestamp("us")).cast(pa.timestamp(self.one_of(["us", "ns"]))),
            "zoned": lambda: pa.array(times, pa.timestamp("us", self.one_of(["UTC", "Europe/Berlin"]))),
            "text": lambda: pa.array([value and self._iso(value) for value in times], pa.string()).dictionary_encode(),
            "epoch text": lambda: pa.array([None if v is None else f" {v}.0" for v in whole], pa.large_string()),
            "polars": lambda: pl.Series(times, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")).to_arrow(),
        }[kind]()
        stars = self.one_of([pa.float64(), pa.float32(), pa.float16(), pa.decimal128(5, 1), pa.string()])
        ratings = [None if r is None else Decimal(str(r)) if pa.types.is_decimal(stars) else r for r in ratings]
        ratings = [str(r) if pa.types.is_string(stars) and r is not None else r for r in ratings]
        columns = {name: self._as_type([row[name] for row in rows], self._id_type()) for name in NAMES[:2]}
        columns |= {"timestamp": column, "rating": pa.array(ratings, stars)}
        columns["event"] = pa.array([row["event"] for row in rows], pa.string())
        buffer = io.BytesIO()
        order = self.rng.permutation(NAMES).tolist()
        pq.write_table(pa.table(columns).select(order), buffer, row_group_size=int(self.rng.integers(1, 30)))
        return buffer.getvalue()

    def _iso(self, us: int) -> str:
        zone = self.one_of(ZONES)
        hours = {"+05:30": 5.5, "-08": -8}.get(zone, 0)
        moment = EPOCH + dt.timedelta(microseconds=us) + dt.timedelta(hours=hours)
        return moment.isoformat(self.one_of(" T")) + zone

    def _text(self, rows: list[dict]) -> bytes:
        how = self.one_of(["number", "real", "iso", "text"])

        def cell(name: str, value):
            if value is None or name == "event":
                return value
            if name == "timestamp":
                whole = value // UNITS[self.unit]
                shown = {"number": whole, "real": float(whole), "text": f" {whole} "}
                return self._iso(value) if how == "iso" else shown[how]
            if name == "rating":
                return self.one_of([value, str(value)])
            return self.one_of([value, int(value), float(value)]) if self.ids == "numbers" else value

        return self._lines(rows, cell)

    def _lines(self, rows: list[dict], cell) -> bytes:
        names = self.rng.permutation(list(rows[0] if rows else NAMES)).tolist()
        cells = [{name: cell(name, row[name]) for name in names} for row in rows]
        bad = set()
        if "rating" in names and len(rows) > 1 and self.chance(0.3):
            bad = {int(at) for at in self.rng.integers(0, len(rows), 2)}
            self.malformed += len(bad)
        if self.format == "csv":
            lines = [self._delimited(names), *(self._delimited(list(row.values())) for row in cells)]
            junk = "junk"
        else:
            lines, junk = [self._object(row) for row in cells], '{"user_id": '
        header = len(lines) - len(cells)
        out = []
        for at, line in enumerate(lines):
            out += [junk, line] if at - header in bad else [line]
        end = self.one_of(["\n", "\r\n"])
        text = end.join(out) + self.one_of(["", end, end + end])
        encoding = self.dialect.get("encoding", "utf-8")
        data = (b"\xef\xbb\xbf" if encoding == "utf-8" and self.chance(0.2) else b"") + text.encode(encoding)
        if self.suffix.endswith(".gz"):
            return gzip.compress(data)
        return pa.Codec("zstd").compress(data, asbytes=True) if self.suffix.endswith(".zst") else data

    def _object(self, row: dict) -> str:
        row = {name: value for name, value in row.items() if value is not None or not self.told or self.chance(0.7)}
        self.told = True  # a key that no row has is refused
        row = {n: float("nan") if v is None and n != "event" and self.chance(0.3) else v for n, v in row.items()}
        return repr(row) if self.format == "literal" else json.dumps(row, ensure_ascii=self.chance(0.5))

    def _delimited(self, values: list) -> str:
        quote, escape, delimiter = (self.dialect[key] for key in ("quote", "escape", "delimiter"))

        def field(value) -> str:
            if value is None:
                return self.null
            text = str(value)
            needed = any(special in text for special in (delimiter, quote or delimiter, "\t"))
            if quote is not None and (needed or self.chance(0.3)):
                text = text.replace(escape, 2 * escape) if escape else text
                return quote + text.replace(quote, (escape or quote) + quote) + quote
            for special in (escape, quote, delimiter) if escape else ():
                text = text.replace(special, escape + special) if special else text
            return text

        return delimiter.join(map(field, values))
