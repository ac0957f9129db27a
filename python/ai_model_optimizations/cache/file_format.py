"""The bytes of cache files: frames that can be read independently.

A file is a signature and frames. A frame is a header (kind, length, checksum of the payload,
checksum of the header) and a payload. Whatever happens to one frame, the next is found by its
signature, so all undamaged frames of a file can be read; a truncated file is recognised as well.
A snapshot is settings, blocks of entries and an end mark; a journal has the same kinds of frames in
the order in which they were written. Numbers are little-endian.

A block of entries is a JSON list of their columns, then their vectors, then their values.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contexts import ContextKey
from .entry_table import Record
from .values import pack_value, unpack_value

VERSION = 1
_SIGNATURE = b"AIMO-CACHE\r\n\x1a\n"
FILE_HEADER = _SIGNATURE + struct.pack("<H", VERSION)
_FRAME_MARK = b"\xabAF\x01"
_FRAME = struct.Struct("<4sIQII")
_LENGTH = struct.Struct("<Q")

SETTINGS, ENTRIES, REMOVED, CLEARED, END = range(1, 6)


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a file that could not be read."""

    offset: int
    length: int
    reason: str


@dataclass(frozen=True, slots=True)
class Frame:
    """An undamaged frame."""

    kind: int
    payload: bytes


def encode_frame(kind: int, payload: bytes) -> bytes:
    """Return a frame, ready to be written."""
    head = struct.pack("<4sIQI", _FRAME_MARK, kind, len(payload), zlib.crc32(payload))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def encode_json(kind: int, content: object) -> bytes:
    """Return a frame that holds JSON."""
    return encode_frame(kind, json.dumps(content).encode())


def _number(value: float) -> float | None:
    return None if math.isinf(value) else value


def encode_entries(
    records: Sequence[Record], vectors: NDArray[np.float32], dtype: str, to_wall: float
) -> bytes:
    """Return a frame of entries.

    Parameters
    ----------
    vectors : (n, dim), one row per record
    dtype : "<f2" when the rows come from an index of that precision, else "<f4"
    to_wall : what to add to the cache's clock to get wall-clock time, which a restart does not
        reset
    """
    rows, values = [], []
    for record in records:
        kind, data = pack_value(record.value)
        values.append(data)
        rows.append(
            [
                record.serial,
                record.created + to_wall,
                _number(record.expires + to_wall),
                _number(record.ttl),
                record.hits,
                record.cost,
                record.context,
                record.query,
                None if record.text_key == record.query else record.text_key,
                record.tags,
                record.source,
                kind,
                len(data),
            ]
        )
    head = json.dumps({"dtype": dtype, "shape": vectors.shape, "rows": rows}).encode()
    block = np.ascontiguousarray(vectors, np.dtype(dtype)).tobytes()
    return encode_frame(ENTRIES, b"".join((_LENGTH.pack(len(head)), head, block, *values)))


def decode_entries(payload: bytes, to_clock: float) -> tuple[list[Record], NDArray[np.float32]]:
    """Return what `encode_entries` was given, with times on the cache's clock again."""
    (length,) = _LENGTH.unpack_from(payload)
    start = _LENGTH.size + length
    head: dict[str, Any] = json.loads(payload[_LENGTH.size : start])
    count, dimension = head["shape"]
    stored = np.frombuffer(payload, np.dtype(head["dtype"]), count * dimension, start)
    position = start + stored.nbytes
    records = []
    for row in head["rows"]:
        serial, created, expires, ttl, hits, cost, context, query, text_key = row[:9]
        tags, source, kind, size = row[9:]
        key: ContextKey = context if isinstance(context, str) else (context[0],)
        records.append(
            Record(
                value=unpack_value(kind, payload[position : position + size]),
                query=query,
                text_key=query if text_key is None else text_key,
                context=key,
                created=created + to_clock,
                expires=math.inf if expires is None else expires + to_clock,
                ttl=math.inf if ttl is None else ttl,
                cost=cost,
                tags=tuple(tags),
                source=source,
                hits=hits,
                serial=serial,
            )
        )
        position += size
    return records, stored.reshape(count, dimension).astype(np.float32)


def read_frames(path: str) -> Iterator[Frame | Damage]:
    """Yield the frames of a file and the damage between them, in order; the file is mapped.

    Raises
    ------
    ValueError
        If it is not a cache file, or one of a later version.
    """
    with open(path, "rb") as file:
        head = file.read(len(FILE_HEADER))
        if head[: len(_SIGNATURE)] != _SIGNATURE or len(head) < len(FILE_HEADER):
            raise ValueError(f"{path} is not a cache file")
        (version,) = struct.unpack("<H", head[len(_SIGNATURE) :])
        if version != VERSION:
            raise ValueError(f"{path} has version {version}; this package reads {VERSION}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from _scan(data)


def _scan(data: mmap.mmap) -> Iterator[Frame | Damage]:
    position, end = len(FILE_HEADER), len(data)
    while position < end:
        length, reason = _check_header(data, position)
        if reason is None:
            start = position + _FRAME.size
            payload = data[start : start + length]
            _, kind, _, checksum, _ = _FRAME.unpack_from(data, position)
            if zlib.crc32(payload) == checksum:
                yield Frame(kind, payload)
            else:
                yield Damage(position, _FRAME.size + length, "checksum")
            position = start + length
        else:
            following = data.find(_FRAME_MARK, position + 1)
            stop = end if following < 0 else following
            yield Damage(position, stop - position, reason)
            position = stop


def _check_header(data: mmap.mmap, position: int) -> tuple[int, str | None]:
    """Return the payload's length and None, or why there is no valid frame at `position`."""
    if position + _FRAME.size > len(data):
        return 0, "cut off"
    mark, _, length, _, checksum = _FRAME.unpack_from(data, position)
    head = data[position : position + _FRAME.size - 4]
    if mark != _FRAME_MARK or zlib.crc32(head) != checksum:
        return 0, "header"
    if position + _FRAME.size + length > len(data):
        return 0, "cut off"
    return length, None
