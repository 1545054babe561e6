"""Times as databases, programs and spreadsheets print them.

msgspec parses RFC 3339 while it decodes a line, in C. Other times come here as text or numbers.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from agentmem_site.bulk import binary
from agentmem_site.bulk.notices import Notices

DATE_ORDERS = ("dmy", "mdy")
NO_MOMENT = "Expected a moment between 1970 and 2200"
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
_ECHOED = 80  # characters

# Numbers since 1970, by their magnitude: (from, below, units per second, name). Each range holds
# the years 1973 to 2286. A number between two ranges is ambiguous and refused.
_UNITS = (
    (0, 1e10, 1, "seconds"),
    (1e11, 1e13, 1_000, "milliseconds"),
    (1e14, 1e16, 1_000_000, "microseconds"),
    (1e17, 1e19, 1_000_000_000, "nanoseconds"),
)
_SPREADSHEET_DAYS = (20_000, 120_000)  # 1954 to 2228, counted from 1900

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_COMPACT = re.compile(r"(?:19|20|21)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{6})?")
_DOTNET = re.compile(r"/Date\((-?\d+)(?:[+-]\d{4})?\)/")
_TIME = r"""
    (?P<hour>\d{1,2}) : (?P<minute>\d{2}) (?: : (?P<second>\d{2}) (?: [.,] (?P<part>\d+) )? )?
    (?: \s* (?P<half>[ap])\.?m\.? )?"""
# An offset, and what programs print after it: an abbreviation, a comment, a name in brackets.
_ZONE = r"""
    (?: \s* (?P<zone> z | (?:utc|gmt)? \s* [+-] \d{1,2} (?: :? \d{2} ){0,2} | utc | gmt
              | [a-z]+ (?: / [a-z0-9_+-]+ )+ | [a-z]{2,5} )
        (?: \s+ [a-z]{1,5} )? (?: \s+ m=[+-][\d.]+ )? (?: \s* \[ [^\]]* \] )? (?: \s* \( [^)]* \) )?
    )?"""
_WEEKDAY = r"(?: (?:mon|tue|wed|thu|fri|sat|sun) [a-z]* ,? \s+ )?"
_MONTH = r"(?P<name> jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec ) [a-z]*"
_DAY, _YEAR = r"(?P<day> \d{1,2} )", r"(?P<year> \d{4} )"
_FORMS = [
    re.compile(form, re.VERBOSE | re.IGNORECASE)
    for form in (
        # 2026-01-31 10:00:00+00, 2026/01/31
        rf"""{_YEAR} (?P<sign>[-/.]) (?P<month>\d{{1,2}}) (?P=sign) {_DAY}
             (?: (?: t | ,? \s+ ) {_TIME} {_ZONE} )?""",
        # 20260131T100000Z
        rf"""{_YEAR} (?P<month>\d\d) (?P<day>\d\d)
             (?: [t\s] (?P<hour>\d\d) (?P<minute>\d\d)
                 (?: (?P<second>\d\d) (?: [.,] (?P<part>\d+) )? )? {_ZONE} )?""",
        # 31.01.2026 10:00, 1/31/2026, 10:00:00 AM
        rf"""(?P<first>\d{{1,2}}) (?P<sign>[-/.]) (?P<second_>\d{{1,2}}) (?P=sign) {_YEAR}
             (?: ,? \s+ {_TIME} {_ZONE} )?""",
        # Sat, 31 Jan 2026 10:00:00 GMT, 31-Jan-2026
        rf"{_WEEKDAY} {_DAY} [\s-] {_MONTH} \.? [\s,-]\s* {_YEAR} (?: ,? \s+ {_TIME} {_ZONE} )?",
        # Sat Jan 31 2026 10:00:00 GMT+0100 (CET), January 31, 2026 at 10:00 AM
        rf"""{_WEEKDAY} {_MONTH} \.? \s+ {_DAY} ,? \s+ {_YEAR}
             (?: ,? \s+ (?: at \s+ )? {_TIME} {_ZONE} )?""",
        # Sat Jan 31 10:00:00 2026 UTC, Sat Jan 31 10:00:00 UTC 2026
        rf"{_WEEKDAY} {_MONTH} \s+ {_DAY} \s+ {_TIME} {_ZONE} \s+ {_YEAR}",
        rf"{_WEEKDAY} {_MONTH} \s+ {_DAY} \s+ {_TIME} \s+ {_YEAR} {_ZONE}",
    )
]
_SPACES = str.maketrans({"\u202f": " ", "\u00a0": " "})  # before AM, in browsers
_OFFSET = re.compile(r"(?:utc|gmt)?\s*([+-])(\d{1,2}):?(\d{2})?:?(\d{2})?", re.IGNORECASE)


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises: ValueError."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError) as error:  # (a folder is an OSError)
        raise ValueError(
            f"There is no time zone {name[:_ECHOED]!r}; a name is like Europe/Berlin or UTC"
        ) from error


class Times:
    """How one load reads times: `zone` is for times without one, `date_order` for 01/02/2026.
    Messages name these options if the caller has them."""

    def __init__(
        self,
        *,
        zone: str = "",
        date_order: str = "",
        has_options: bool = False,
        notices: Notices | None = None,
    ) -> None:
        self._zone = zone_of(zone) if zone else None
        self._date_order = date_order
        self._has_options = has_options
        self.notices = Notices() if notices is None else notices

    def encoder(self, field: str) -> binary.Encode:
        """A function that encodes values of this field as timestamptz. It raises ValueError."""

        def encode(value: Any) -> bytes:
            if not isinstance(value, datetime):
                value = self.read(value, field)
            if not EARLIEST <= value < LATEST:
                raise ValueError(NO_MOMENT)
            return binary.timestamptz(value)

        return encode

    def read(self, value: float | str, field: str = "A time") -> datetime:
        """Raises: ValueError."""
        if not isinstance(value, str):
            return self._number(value, field)
        if (quick := _as_postgresql(value)) is not None:
            return quick
        text = value.translate(_SPACES).strip()
        if len(text) > _ECHOED:
            raise ValueError(f"{_echo(text)} is not a time")
        if _NUMBER.fullmatch(text):
            return self._number(float(text) if not text.isdigit() else int(text), field)
        if found := _DOTNET.fullmatch(text):
            return _since_1970(int(found[1]), 1_000)
        for form in _FORMS:
            if found := form.fullmatch(text):
                return self._written(found.groupdict(), text, field)
        raise ValueError(f"{_echo(text)} is not a time, which is like 2026-01-31T10:00:00Z")

    # -- inside ------------------------------------------------------------------------------------

    def _number(self, value: float, field: str) -> datetime:
        if not math.isfinite(value):
            raise ValueError(NO_MOMENT)
        if value == int(value) and _COMPACT.fullmatch(digits := str(int(value))):
            if len(digits) == 8:
                digits += "T000000"
                self.notices.add(f"{field}: numbers of eight digits are read as dates, YYYYMMDD.")
                return self._local(datetime.strptime(digits, "%Y%m%dT%H%M%S"), field)
            return self._naive(_valid(datetime.strptime, digits, "%Y%m%d%H%M%S"), digits)
        if _SPREADSHEET_DAYS[0] <= value < _SPREADSHEET_DAYS[1]:
            raise ValueError(
                f"{value:g} looks like a spreadsheet's number of days; give the column a date "
                "format such as yyyy-mm-dd hh:mm:ss and save it again"
            )
        for least, limit, per_second, name in _UNITS:
            if least <= value < limit:
                if per_second > 1:
                    self.notices.add(f"{field}: numbers are read as {name} since 1970.")
                return _since_1970(value, per_second)
        raise ValueError(NO_MOMENT)

    def _written(self, parts: dict[str, str | None], text: str, field: str) -> datetime:
        year, (month, day) = int(parts["year"] or 0), self._month_and_day(parts, text)
        hour, minute = int(parts["hour"] or 0), int(parts["minute"] or 0)
        second = int(parts["second"] or 0)
        if half := parts.get("half"):
            if not 1 <= hour <= 12:
                raise ValueError(f"{_echo(text)}: with AM or PM, an hour is 1 to 12")
            hour = hour % 12 + 12 * (half in "pP")
        # PostgreSQL writes 24:00:00 for the end of a day, and a leap second is second 60.
        later = timedelta(days=hour == 24, seconds=second == 60)
        if hour == 24 and not (minute or second):
            hour = 0
        part = (parts["part"] or "")[:7].ljust(7, "0")
        # (Rounded, as PostgreSQL and msgspec do.)
        later += timedelta(microseconds=(int(part) + 5) // 10)
        try:
            moment = datetime(year, month, day, hour, minute, second - (second == 60)) + later
        except ValueError as error:
            raise ValueError(f"{_echo(text)}: {error}") from error
        except OverflowError as error:
            raise ValueError(NO_MOMENT) from error
        if zone := parts["zone"]:
            return moment.replace(tzinfo=_zone(zone, text))
        if parts["hour"] is None:
            return self._local(moment, field)
        return self._naive(moment, text)

    def _month_and_day(self, parts: dict[str, str | None], text: str) -> tuple[int, int]:
        if name := parts.get("name"):
            return _MONTHS.index(name.lower()) + 1, int(parts["day"] or 0)
        if "first" not in parts:
            return int(parts["month"] or 0), int(parts["day"] or 0)
        first, second = int(parts["first"] or 0), int(parts["second_"] or 0)
        order = "dmy" if parts["sign"] == "." else self._date_order
        if not order and first != second:
            if first <= 12 and second <= 12:
                advice = "--date-order dmy or mdy decides"
                raise ValueError(self._message(f"{_echo(text)} is ambiguous", advice))
            order = "mdy" if first <= 12 else "dmy"
        return (first, second) if order == "mdy" else (second, first)

    def _naive(self, moment: datetime, text: str) -> datetime:
        if self._zone is None:
            advice = "or --timezone names the one that it is in, like Europe/Berlin"
            fault = f"{_echo(text)} has no time zone; add Z or an offset like +01:00"
            raise ValueError(self._message(fault, advice, ", "))
        return moment.replace(tzinfo=self._zone)

    def _message(self, fault: str, advice: str, separator: str = "; ") -> str:
        return f"{fault}{separator}{advice}" if self._has_options else fault

    def _local(self, day: datetime, field: str) -> datetime:
        """The start of a day."""
        if self._zone is None:
            self.notices.add(
                f"{field}: dates are read as their midnight in UTC; --timezone names another zone."
            )
        return day.replace(tzinfo=self._zone or UTC)


def _as_postgresql(text: str) -> datetime | None:
    """2026-01-31 10:00:00+00, with six decimals or none, at a tenth of the cost of the forms."""
    sign = text[26:27] if text[19:20] == "." else text[19:20]
    if not sign or sign not in "+-" or text[10:11] not in (" ", "T"):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None  # for the forms, which say why


def _since_1970(value: float, per_second: int) -> datetime:
    whole, rest = divmod(value, per_second)
    try:
        return EARLIEST + timedelta(seconds=whole, microseconds=rest * 1_000_000 / per_second)
    except OverflowError as error:
        raise ValueError(NO_MOMENT) from error


def _zone(name: str, text: str) -> tzinfo:
    if name.upper() in ("Z", "UTC", "GMT"):
        return UTC
    if found := _OFFSET.fullmatch(name):
        sign = -1 if found[1] == "-" else 1
        hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:])
        if hours > 15 or minutes > 59 or seconds > 59:
            raise ValueError(f"{_echo(text)}: there is no offset {name}")
        return timezone(sign * timedelta(hours=hours, minutes=minutes, seconds=seconds))
    if "/" in name:
        return zone_of(name)
    raise ValueError(
        f"{_echo(text)}: {name} is the abbreviation of several time zones; write the offset, "
        "like +01:00"
    )


def _valid(parse: Callable[[str, str], datetime], text: str, form: str) -> datetime:
    try:
        return parse(text, form)
    except ValueError as error:
        raise ValueError(f"{_echo(text)} is not a time") from error


def _echo(text: str) -> str:
    return repr(text if len(text) <= _ECHOED else f"{text[: _ECHOED - 3]}...")
