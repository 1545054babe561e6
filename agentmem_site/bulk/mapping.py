"""`--map old=new` and `--set field=value`, on lines of JSON. Paths have dots: user.id."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from agentmem_site.bulk.checks import check_line
from agentmem_site.bulk.columns import ABSENT, TEXT, Cells, Column, nearest
from agentmem_site.bulk.reading import BadOption, ReadOptions
from agentmem_site.bulk.spec import LineError

Numbered = tuple[int, bytes | LineError, int]
Row = dict[str, Any]
Path = tuple[str, ...]
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_NULL = b"null"


def check_options(options: ReadOptions) -> None:
    """Raises: BadOption, for an unknown field, or a value that it does not accept."""
    for option, targets in (("map", options.renames.values()), ("set", options.constants)):
        for target in targets:
            name = target.partition(".")[0]
            if name and options.fields is not None and name not in options.fields:
                meant = nearest(name, options.fields)
                suggestion = f" (do you mean {meant}?)" if meant else ""
                raise BadOption(
                    option,
                    f"--{option}: there is no field {name[:80]!r}{suggestion}. "
                    f"Known are {', '.join(options.fields)}",
                )
    try:
        _constants(options)
    except LineError as error:
        raise BadOption("set", f"{error.field}: {error.message}") from error


def mapped(
    lines: Iterable[Numbered], options: ReadOptions, done: Callable[[], set[str]]
) -> Iterator[Numbered]:
    """The lines with renamed fields and constants. `done` returns the renames that a table's
    header has applied; it is called at the first line."""
    constants = _constants(options)
    renames: list[tuple[str, Path, Path]] | None = None
    found: set[str] = set()
    for number, line, at in lines:
        if renames is None:
            renames = [
                (old, tuple(old.split(".")), tuple(new.split(".")) if new else ())
                for old, new in options.renames.items()
                if old not in done()
            ]
        yield number, _changed_or_bad(number, line, renames, constants, found), at
    for old, *_ in renames or ():
        if old not in found:
            options.notices.add(f"--map {old[:80]}: no line has it.")


def put(row: Row, path: Path, value: Any) -> None:
    """Raises: LineError, if the row has another value there."""
    for depth, name in enumerate(path[:-1], start=1):
        below = row.get(name)
        if isinstance(below, msgspec.Raw):
            below = None if bytes(below) == _NULL else _object(below, path[:depth])
        elif below is not None and not isinstance(below, dict):
            raise LineError("invalid_value", ".".join(path[:depth]), "An object is needed here")
        row[name] = row = {} if below is None else below
    there = row.get(path[-1])
    if there is not None and _bytes(there) not in (_NULL, _bytes(value)):
        raise LineError("duplicate_key", ".".join(path), "The field is given twice")
    row[path[-1]] = value


def _changed_or_bad(number: int, line: bytes | LineError, *how: Any) -> bytes | LineError:
    if isinstance(line, LineError):
        return line
    try:
        return _changed(line, *how)
    except LineError as error:
        error.line = number
        return error


def _changed(
    line: bytes,
    renames: Iterable[tuple[str, Path, Path]],
    constants: Iterable[tuple[Path, msgspec.Raw]],
    found: set[str],
) -> bytes:
    check_line(line)  # (decoding would hide a duplicate key)
    try:
        row: Row = dict(_decode(line))
    except msgspec.DecodeError:
        return line  # for whoever decodes it
    taken = [
        (old, new, row.pop(old) if old in row else _take(row, path)) for old, path, new in renames
    ]
    for old, new, value in taken:
        if value is not ABSENT:
            found.add(old)
            if new:
                put(row, new, value)
    for path, value in constants:
        put(row, path, value)
    return _encode(row)


def _take(row: Row, path: Path) -> Any:
    name, *rest = path
    if name not in row:
        return ABSENT
    if not rest:
        return row.pop(name)
    try:
        below = row[name] if isinstance(row[name], dict) else dict(_decode(row[name]))
    except msgspec.DecodeError:
        return ABSENT
    value = _take(below, tuple(rest))
    if value is not ABSENT:
        row[name] = below
        if not below:
            del row[name]
    return value


def _object(raw: msgspec.Raw, path: Path) -> Row:
    try:
        return dict(_decode(raw))
    except msgspec.DecodeError as error:
        raise LineError("invalid_value", ".".join(path), "An object is needed here") from error


def _bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, msgspec.Raw) else _encode(value)


def _constants(options: ReadOptions) -> list[tuple[Path, msgspec.Raw]]:
    return [
        (path, msgspec.Raw(_encode(_constant(text, path, options.fields))))
        for name, text in options.constants.items()
        for path in [tuple(name.split("."))]
    ]


def _constant(text: str, path: Path, fields: Mapping[str, str] | None) -> Any:
    kind = (fields or {}).get(path[0], TEXT) if len(path) == 1 else TEXT
    # (What somebody typed is not suspected to mean nothing.)
    cells = Cells(ReadOptions(nulls=frozenset({""})))
    value = cells.value(text, Column(path[0], 0, kind, path))
    return None if value is ABSENT else value
