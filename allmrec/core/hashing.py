"""Hashes and random draws that are the same on every machine, version and number of workers.

Everything is keyed by values (a user id, a seed, an epoch), never by a position in a block, so a result
cannot depend on how rows were divided among workers. Vectorised over rows; knows nothing of tables.
"""

import hashlib
import json
from collections.abc import Iterator
from enum import IntEnum, unique
from typing import Any

import numpy as np
import pyarrow as pa

_BLOCK = 1 << 16  # strings that are Python's at once
_ROWS = 1 << 15  # strings hashed at once: what is computed of them stays in the processor's cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@unique
class Draw(IntEnum):
    """What a draw is for: the last part of its key, so that no two purposes share their draws."""

    SPLIT_USERS = 0x5350
    SPLIT_ORDER = 0x534F
    CASES_USERS = 0x4355
    CASES_NEGATIVES = 0x4556
    TEACHER_VALIDATION = 0x5341
    TEACHER_PARTS = 0x5041
    TEACHER_BATCHES = 0x4241
    TEACHER_NEGATIVES = 0x4E45
    TEACHER_SHARED_NEGATIVES = 0x4E4B
    TEACHER_DROPOUT = 0x4452
    PRETRAINING_PARTS = 0x5052
    PRETRAINING_BATCHES = 0x5054
    PRETRAINING_DROPOUT = 0x5044
    PRETRAINING_HEADS = 0x5048
    ALIGNMENT_USERS = 0x4155
    ALIGNMENT_PARTS = 0x4150
    RECFORMER_PARTS = 0x5250
    RECFORMER_BATCHES = 0x5242
    RECFORMER_TARGETS = 0x5254
    ALIGNMENT_HELD_OUT = 0x4148
    ALIGNMENT_BATCHES = 0x4142
    ALIGNMENT_UNSEEN = 0x414E
    TRANSFER_ITEMS = 0x5452
    PROJECTION_USERS = 0x5550
    PROJECTION_PARTS = 0x5053
    PROJECTION_EXAMPLES = 0x4541
    PROJECTION_START_USERS = 0x5355
    PROJECTION_START_ITEMS = 0x5349
    PROJECTION_ORDER = 0x4F52
    PROJECTION_BATCHES = 0x4253
    PROJECTION_NEGATIVES = 0x5042
    PROJECTION_SHOWN = 0x504C
    PROJECTION_VALIDATION_SHOWN = 0x5653
    READOUTS = 0x524F
    READOUT_ITEMS = 0x5249
    EVALUATION_SCORES = 0x5243
    EVALUATION_RANKS = 0x4550
    EVALUATION_SHOWN = 0x4553
    EVALUATION_PARTNERS = 0x5057
    EVALUATION_GENERATION = 0x4745
    EVALUATION_ORDER = 0x454F
    EXPLAIN_USERS = 0x4558
    NIGHTLY_USERS = 0x4C49
    NIGHTLY_SHOWN = 0x4E49
    NIGHTLY_RECALL = 0x4E52
    NIGHTLY_SAMPLE = 0x4E53
    REUSE_HISTORY = 0x4849
    REUSE_CANDIDATES = 0x4341


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): uint64 (any shape) to well-mixed uint64."""
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def key64(*parts: int) -> np.uint64:
    """Fold small integers (seed, epoch, a `Draw`) into one 64-bit key."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = mix64(key ^ np.uint64(part % 2**64))
    return key[0]


def hash_strings(strings: pa.Array | pa.ChunkedArray, seed: int = 0) -> np.ndarray:
    """64-bit hashes of strings: uint64 (N,). Eight bytes a round, so the cost is N x longest / 8."""
    if isinstance(strings, pa.ChunkedArray):  # one by one: together their texts may be more than 2^31 bytes
        return np.concatenate([np.zeros(0, np.uint64), *(hash_strings(chunk, seed) for chunk in strings.chunks)])
    binary = strings.cast(pa.large_string()).cast(pa.large_binary())
    assert binary.null_count == 0, "ids are not null: cleaning quarantines such rows"
    _, offsets_buffer, data_buffer = binary.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[binary.offset : binary.offset + len(binary) + 1]
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
    words = np.ndarray(len(data) + 1, dtype="<u8", buffer=padded, strides=(1,))  # the eight bytes from each on
    hashes, key = np.empty(len(binary), dtype=np.uint64), key64(seed)
    for row in range(0, len(binary), _ROWS):
        hashes[row : row + _ROWS] = _hash(words, offsets[row : row + _ROWS + 1] - offsets[0], key)
    return hashes


def _hash(words: np.ndarray, offsets: np.ndarray, key: np.uint64) -> np.ndarray:
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes = mix64(lengths.astype(np.uint64) ^ key)
    for first in range(0, int(lengths.max()), 8):
        rows = np.flatnonzero(lengths > first)
        kept = np.minimum(lengths[rows] - first, 8).astype(np.uint64) * np.uint64(8)
        mask = np.uint64(2**64 - 1) >> (np.uint64(64) - kept)
        hashes[rows] = mix64(hashes[rows] ^ (words[starts[rows] + first] & mask))
    return hashes


def draws(hashes: np.ndarray, key: np.uint64, count: int, first: int = 0) -> np.ndarray:
    """Counter-based draws `first ... first+count-1` of each row: (N,) hashes to uint64 (N, count)."""
    with np.errstate(over="ignore"):
        counters = np.arange(first, first + count, dtype=np.uint64) * _GOLDEN
        return mix64(mix64(hashes ^ key)[:, None] + counters)


def uniforms(hashes: np.ndarray, key: np.uint64, count: int, first: int = 0) -> np.ndarray:
    """As `draws`, as float64 in [0, 1): (N, count)."""
    return (draws(hashes, key, count, first) >> np.uint64(11)) * 2.0**-53


def permutations(hashes: np.ndarray, key: np.uint64, count: int) -> np.ndarray:
    """A random order of `count` things for each row: (N,) hashes to int64 (N, count)."""
    return draws(hashes, key, count).argsort(axis=1, kind="stable")


def shard_of(user_ids: pa.Array | pa.ChunkedArray, num_shards: int) -> np.ndarray:
    """The shard of each user, int32 (N,): by a hash of the id, so that it never changes."""
    return (hash_strings(user_ids) % np.uint64(num_shards)).astype(np.int32)


def fingerprint(value: Any) -> str:
    """sha256 (hex) of a JSON-able value in canonical form."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def fingerprint_with(value: dict[str, Any], key: str, strings: pa.Array) -> str:
    """As `fingerprint` of `value | {key: strings.to_pylist()}`, without all of them as Python's strings."""
    digest = hashlib.sha256()
    for number, name in enumerate(sorted({*value, key})):
        digest.update(f"{'{,'[number > 0]}{_canonical(name)}:".encode())
        for part in _listed(strings) if name == key else [_canonical(value[name])]:
            digest.update(part.encode())
    digest.update(b"}")
    return digest.hexdigest()


def _listed(strings: pa.Array) -> Iterator[str]:
    """The canonical form of a list of strings, in parts."""
    yield "["
    for first in range(0, len(strings), _BLOCK):
        yield "," * (first > 0) + _canonical(strings[first : first + _BLOCK].to_pylist())[1:-1]
    yield "]"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
