"""What a cell says, whatever type its file gave it: Arrow columns of any type as ids, words, numbers and flags.

docs/data.md has the table of types. Knows nothing of files, nor which column is which; times are `clean`'s business.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

_UUID_BYTES, _UUID_WIDTH = 16, 36
_DIGITS_AT = [at for at in range(_UUID_WIDTH) if at not in (8, 13, 18, 23)]  # the others are hyphens
_WHOLE = r"^(-?(?:0|[1-9][0-9]*))\.0+$"  # a whole number as programs write it that keep it as a real one
_EXACT = {pa.float32(): 2.0**24, pa.float64(): 2.0**53}  # whole numbers below are told from their neighbours
_TEXTS = {pa.binary(): pa.string(), pa.large_binary(): pa.large_string()}

ID_TYPES = "text, a number or a UUID"

TRUE = ("true", "t", "yes", "y", "on", "available", "instock", "preorder", "backorder")
FALSE = ("false", "f", "no", "n", "off", "unavailable", "outofstock", "soldout", "discontinued")


def plain(column: pa.Array) -> pa.Array:
    """A column in one of few types, without a copy where it is of them already.

    Views and fixed lengths go, bytes that are not said to be text are text (the encoding is not checked here), a UUID
    is its usual text, and of dictionaries only those of text stay. What has no meaning here, such as a struct, comes
    out as it is.
    """
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return _uuids(column.storage)
    if isinstance(kind, pa.JsonType):
        return plain(column.storage)
    if isinstance(kind, pa.Bool8Type):
        return column.storage.cast(pa.bool_())
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(column))
    if pa.types.is_dictionary(kind):
        values = plain(column.dictionary)
        if not is_text(values.type):
            return values.take(column.indices)
        return column if values.type == kind.value_type else pa.DictionaryArray.from_arrays(column.indices, values)
    if pa.types.is_fixed_size_binary(kind):
        return _uuids(column) if kind.byte_width == _UUID_BYTES else plain(column.cast(pa.binary()))
    if kind in _TEXTS:
        return column.view(_TEXTS[kind])
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.binary()).view(pa.string())
    if pa.types.is_decimal256(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    if kind == pa.float16():
        return column.cast(pa.float32())
    return _plain_list(column) if is_list(kind) else column


def plain_type(kind: pa.DataType) -> pa.DataType:
    """What `plain` makes of a column of this type."""
    return plain(pa.nulls(0, kind)).type


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string())


def is_list(kind: pa.DataType) -> bool:
    return any(
        test(kind)
        for test in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def accepts(*tests: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    """Whether a column of a type, once it is plain, passes one of the tests; one of nulls alone always does."""

    def accepted(kind: pa.DataType) -> bool:
        kind = plain_type(kind)
        return pa.types.is_null(kind) or any(test(kind) for test in tests)

    return accepted


is_id = accepts(is_text, is_number)


def as_ids(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids of any type that `is_id` accepts as string (N,): one id is one text, whatever its type was.

    Text stays as it is (007), except whole numbers with zeros behind the point: 1, 1.0 and 1.00 are the id 1. A real
    number that is too large to be told from its neighbours (2^53 and more, in float32 2^24) is null, as NaN is.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return pa.chunked_array([_ids(plain(chunk)).cast(pa.string()) for chunk in chunks], pa.string())


def as_encoded_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """As `as_ids`, for ids that come many times: dictionary<int32, string> (N,), in which a text may occur twice."""
    kind = pa.dictionary(pa.int32(), pa.string())
    chunks = [_ids(plain(chunk).dictionary_encode()) for chunk in column.chunks]
    return pa.chunked_array([chunk if chunk.type == kind else chunk.cast(kind) for chunk in chunks], kind)


def as_id_lists(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of ids as list<string> (N,): every entry as `as_ids` makes it."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return pa.chunked_array([_each(_ids, plain(chunk)) for chunk in chunks], pa.list_(pa.string()))


def as_words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Words, alone or in lists or in lists of lists: text as it is, numbers as `as_ids` makes them."""
    chunks = [_each(_words, plain(chunk)) for chunk in column.chunks]
    return pa.chunked_array(chunks, None if chunks else plain_type(column.type))


def as_numbers(column: pa.ChunkedArray) -> pl.Series:
    """float64 (N,), null where there is no number."""
    numbers = as_series(column)
    if numbers.dtype == pl.String:
        numbers = numbers.str.strip_chars()
    return numbers.cast(pl.Float64, strict=False).fill_nan(None)


def as_flags(column: pa.ChunkedArray) -> tuple[pl.Series, pl.Series]:
    """Yes or no as people and programs write it: bool (N,), and where it cannot be read, bool (N,).

    Numbers are yes above 0 (a stock) and no at 0; an empty text, NaN and null say nothing, which is null.
    """
    if pa.types.is_boolean(plain_type(column.type)):
        flags = as_series(column)
        return flags, flags.is_null() & False
    words = as_series(column).cast(pl.String).str.strip_chars().str.to_lowercase()
    number = words.cast(pl.Float64, strict=False)
    word = words.str.replace_all("[ _-]", "")
    yes = (number > 0) & number.is_finite() | word.is_in(TRUE)
    no = (number == 0) | word.is_in(FALSE)
    empty = words.is_null() | (words == "") | number.is_nan()
    yes, no, empty = (test.fill_null(False) for test in (yes, no, empty))
    flags = pl.select(pl.when(yes).then(True).when(no).then(False)).to_series()
    return flags, ~(yes | no | empty)


def as_series(column: pa.ChunkedArray) -> pl.Series:
    """A column for Polars, plain, and none of it in a dictionary."""
    column = plain_chunks(column)
    kind = column.type
    return pl.Series(column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column)


def plain_chunks(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array(map(plain, column.chunks), plain_type(column.type))


def _each(convert: Callable[[pa.Array], pa.Array], column: pa.Array) -> pa.Array:
    """A plain column, or the entries of its lists, converted."""
    if not is_list(column.type):
        return convert(column)
    return _relisted(column, _each(convert, column.flatten()))


def _words(column: pa.Array) -> pa.Array:
    return column.cast(pa.string()) if is_text(column.type) else _ids(column)


def _ids(column: pa.Array) -> pa.Array:
    """Of a plain column; a dictionary stays one."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, _ids(column.dictionary), safe=False)
    if pa.types.is_floating(kind):
        return _float_ids(column)
    texts = column.cast(pa.string())
    if pa.types.is_integer(kind) or not (_points(texts) and pc.any(pc.match_substring(texts, ".0")).as_py()):
        return texts
    return pc.replace_substring_regex(texts, _WHOLE, r"\1")


def _points(texts: pa.Array) -> bool:
    """Whether there is a point in any of them, or near them: a look at the bytes costs nothing."""
    data = texts.buffers()[2]
    return data is not None and bool((np.frombuffer(data, dtype=np.uint8) == ord(".")).any())


def _float_ids(column: pa.Array) -> pa.Array:
    values = column.to_numpy(zero_copy_only=False)
    known = np.abs(values) < _EXACT[column.type]  # false of NaN, which nulls are here
    whole = known & (values == np.floor(values))
    texts = pa.array(np.where(whole, values, 0).astype(np.int64), mask=~whole).cast(pa.string())
    if (whole == known).all():
        return texts
    return pc.coalesce(texts, pc.if_else(known, pl.Series(values).cast(pl.String).to_arrow().cast(pa.string()), None))


def _uuids(column: pa.Array) -> pa.Array:
    """Sixteen bytes each → their usual text, 8-4-4-4-12 hexadecimal digits."""
    raw = np.frombuffer(column.buffers()[1] or b"", dtype=np.uint8)
    raw = raw[column.offset * _UUID_BYTES :][: len(column) * _UUID_BYTES].reshape(-1, _UUID_BYTES)
    digits = np.stack([raw >> 4, raw & 15], axis=2).reshape(-1, 2 * _UUID_BYTES)
    text = np.full((len(column), _UUID_WIDTH), ord("-"), dtype=np.uint8)
    text[:, _DIGITS_AT] = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)[digits]
    offsets = np.arange(len(column) + 1, dtype=np.int32) * _UUID_WIDTH
    texts = pa.StringArray.from_buffers(len(column), pa.py_buffer(offsets), pa.py_buffer(text))
    return pc.if_else(column.is_valid(), texts, None)


def _plain_list(column: pa.Array) -> pa.Array:
    """As list<item>, the items plain and no dictionary."""
    kind = column.type.value_type
    if pa.types.is_list(column.type) and plain_type(kind) == kind and not pa.types.is_dictionary(kind):
        return column
    values = plain(column.flatten())
    return _relisted(column, values.cast(pa.string()) if pa.types.is_dictionary(values.type) else values)


def _relisted(column: pa.Array, values: pa.Array) -> pa.Array:
    """Lists of the same lengths, of other values: those of the lists that are not null, in their order."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=column.is_null())
