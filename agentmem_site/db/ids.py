"""Ids are UUID version 7, minted by the server: in time order, so B-trees grow at one end."""

import os
import time
import uuid
from collections.abc import Iterator

_VERSION = 0x7 << 12
_VARIANT = 0x8000_0000_0000_0000
_LOW_62 = 0x3FFF_FFFF_FFFF_FFFF


def uuid7() -> uuid.UUID:
    """A new id: 48 bits of milliseconds, 12 bits below the millisecond, 62 random bits.

    Source: RFC 9562, 5.7 and 6.2 method 3.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    high = milliseconds << 16 | _VERSION | rest_ns * 4096 // 1_000_000
    low = int.from_bytes(os.urandom(8), "big") & _LOW_62 | _VARIANT
    return uuid.UUID(int=high << 64 | low)


def uuid7_bytes(count: int) -> Iterator[bytes]:
    """`count` new ids of 16 bytes each, in order; a third of the cost of `uuid7` one by one."""
    random = os.urandom(8 * count)
    start_ns = time.time_ns()
    for index in range(count):
        # 250 ns apart: 1/4096 of a millisecond is what the id can tell, so they stay in order.
        milliseconds, rest_ns = divmod(start_ns + 250 * index, 1_000_000)
        high = milliseconds << 16 | _VERSION | rest_ns * 4096 // 1_000_000
        low = int.from_bytes(random[8 * index : 8 * index + 8], "big") & _LOW_62 | _VARIANT
        yield (high << 64 | low).to_bytes(16, "big")
