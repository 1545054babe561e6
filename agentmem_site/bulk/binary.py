"""Values in PostgreSQL's binary COPY format: a four-byte length, then the bytes.

Source: PostgreSQL manual, COPY, "Binary Format". The bytes are those of each type's send function.
"""

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

Encode = Callable[[Any], bytes]  # value -> length and bytes

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

_length = struct.Struct("!i").pack
_jsonb_head = struct.Struct("!iB").pack
_int2 = struct.Struct("!ih").pack
_int4 = struct.Struct("!ii").pack
_int8 = struct.Struct("!iq").pack
_real = struct.Struct("!if").pack
_halfvec_head = struct.Struct("!iHH").pack
_UUID_LENGTH = _length(16)
_TRUE, _FALSE = _length(1) + b"\1", _length(1) + b"\0"
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_US = 946_684_800_000_000  # since 1970
_VARCHAR_OID = 1043


def row_header(columns: int) -> bytes:
    return struct.pack("!h", columns)


def text(value: str) -> bytes:
    data = value.encode()
    return _length(len(data)) + data


def data(value: bytes) -> bytes:
    return _length(len(value)) + value


def uuid(value: Any) -> bytes:
    return _UUID_LENGTH + value.bytes


def jsonb(raw: bytes) -> bytes:
    """JSON as bytes: the version byte, then the unchanged text."""
    return _jsonb_head(len(raw) + 1, 1) + raw


def timestamptz(value: datetime) -> bytes:
    since = value - _EPOCH
    return _int8(8, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def moment_of(at_us: int) -> bytes:
    """A timestamptz, from microseconds since 1970."""
    return _int8(8, at_us - _EPOCH_US)


def microseconds(value: datetime) -> int:
    """Since 1970."""
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds + _EPOCH_US


def boolean(value: bool) -> bytes:
    return _TRUE if value else _FALSE


def int2(value: int) -> bytes:
    return _int2(2, value)


def int4(value: int) -> bytes:
    return _int4(4, value)


def int8(value: int) -> bytes:
    return _int8(8, value)


def real(value: float) -> bytes:
    return _real(4, value)


def varchar_array(values: list[str]) -> bytes:
    body = struct.pack("!iiI", 1 if values else 0, 0, _VARCHAR_OID)
    if values:
        body += struct.pack("!ii", len(values), 1) + b"".join(map(text, values))
    return _length(len(body)) + body


def halfvec(halves: bytes) -> bytes:
    """pgvector's halfvec: the dimension, an unused short, then `halves`, which are big-endian
    half-precision floats."""
    return _halfvec_head(4 + len(halves), len(halves) // 2, 0) + halves
