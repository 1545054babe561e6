"""Ids are UUIDs of version 7, created by the server in time order: B-trees grow at one end."""

import os
import time
import uuid

NOBODY = uuid.UUID(int=0)  # no row has it: a filter by it matches nothing
_VERSION = 0x7 << 12
_VARIANT = 0x8000_0000_0000_0000
_LOW_62 = 0x3FFF_FFFF_FFFF_FFFF
_PLACE_BITS = 24
_LOW_38 = (1 << 62 - _PLACE_BITS) - 1


def uuid7() -> uuid.UUID:
    """A new id: 48 bits of milliseconds, 12 bits below the millisecond, 62 random bits.

    Source: RFC 9562, 5.7 and 6.2 method 3.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    high = milliseconds << 16 | _VERSION | rest_ns * 4096 // 1_000_000
    low = int.from_bytes(os.urandom(8), "big") & _LOW_62 | _VARIANT
    return uuid.UUID(int=high << 64 | low)


def uuid7_at(at_us: int, random: int) -> bytes:
    """The 16 bytes of a new id with a given time, in microseconds since 1970. Ids sort by it.
    `random` has 64 bits.

    Source: RFC 9562, 6.2 method 3.
    """
    return (_high(at_us) << 64 | random & _LOW_62 | _VARIANT).to_bytes(16, "big")


def uuid7_among(at_us: int, place: int, random: int) -> bytes:
    """The same for one of up to 16,777,216 ids with the same time, which sort by `place`.

    Source: RFC 9562, 6.2 method 1.
    """
    low = place << 62 - _PLACE_BITS | random & _LOW_38
    return (_high(at_us) << 64 | low & _LOW_62 | _VARIANT).to_bytes(16, "big")


def _high(at_us: int) -> int:
    milliseconds, rest_us = divmod(at_us, 1_000)
    return milliseconds << 16 | _VERSION | rest_us * 4096 // 1_000
