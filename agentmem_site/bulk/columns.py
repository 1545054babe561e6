"""The columns of a table: the field of each, and the values of its cells."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from agentmem_site.bulk.packing import UnreadableFile
from agentmem_site.bulk.reading import ReadOptions
from agentmem_site.bulk.spec import LineError

# Kinds of cells.
TEXT = "text"
NAME = "name"  # of a row: text, but no word for "nothing"
JSON = "json"
EITHER = "either"  # a vector: JSON where it is a number or an array, text otherwise
MOMENT = "moment"  # a number, or text
BOOL = "bool"
INT = "int"
NUMBER = "number"
LIST = "list"  # of texts: JSON, a PostgreSQL array, or separated by commas
ROW_NUMBER = "row number"  # belongs to no field
NOTHING = "nothing"  # belongs to no field, and is empty

USUAL = "usual"  # --null usual: all words that programs print for nothing
DEFAULT_NULLS = frozenset({"", "\\N"})
# Words that programs print for nothing.
_NULL_WORDS = frozenset(
    {"null", "none", "nan", "na", "n/a", "#n/a", "nat", "nil", "undefined"}
    | {"<na>", "<null>", "(null)", "-nan", "\\n"}
)
_NULL_PRINTED = frozenset(
    ("NULL", "null", "None", "NaN", "nan", "NA", "N/A", "#N/A", "NaT", "<NA>", "(null)")
)
_TRUTHS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0", "0.0"), False),
}
# What other systems call a field.
_SYNONYMS = {
    "memory": "content",
    "text": "content",
    "message": "text",
    "body": "content",
    "id": "external_id",
    "uuid": "external_id",
    "key": "external_id",
    "user": "user_id",
    "agent": "agent_id",
    "session": "session_id",
    "thread_id": "session_id",
    "conversation_id": "session_id",
    "timestamp": "created_at",
    "date": "created_at",
    "time": "created_at",
    "created": "created_at",
    "updated": "updated_at",
    "type": "memory_type",
}
_UNNAMED = re.compile(r"\s*|Unnamed: \d+(_level_\d+)?|__index_level_\d+__")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NUMBER = re.compile(r"([-+]?)(\d*)(?:\.(\d*))?([eE][-+]?\d+)?")
_FLOAT_KEY = re.compile(r"\d+\.0")
_COMMA = re.compile(r"[-+]?\d{1,3}(?:[.\s]?\d{3})*,\d+")
_ARRAY_ITEM = re.compile(r'"((?:[^"\\]|\\.)*)"|([^",{}]+)')
_SHOWN = 80  # characters
_raw = msgspec.json.Decoder(msgspec.Raw)
_TEXTUAL = (
    msgspec.inspect.StrType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.EnumType,
    msgspec.inspect.CustomType,
)
ABSENT = object()


@dataclass(frozen=True, slots=True)
class Column:
    header: str  # as in the file
    place: int  # from 1
    kind: str
    path: tuple[str, ...] = ()  # the field, and a path below it; empty: no field

    @property
    def name(self) -> str:
        return ".".join(self.path)


def kinds_of(line: type[msgspec.Struct]) -> dict[str, str]:
    """Field -> kind of its cells."""
    return {
        field.encode_name: _kind(field.encode_name, field.type)
        for field in msgspec.inspect.type_info(line).fields  # type: ignore[attr-defined]
    }


def _kind(name: str, type_: Any) -> str:
    given = type_.types if isinstance(type_, msgspec.inspect.UnionType) else (type_,)
    parts = [part for part in given if not isinstance(part, msgspec.inspect.NoneType)]
    first = parts[0]
    if any(isinstance(part, msgspec.inspect.DateTimeType) for part in parts):
        return MOMENT
    if len(parts) > 1:
        return EITHER
    if isinstance(first, msgspec.inspect.StrType):
        is_key = (first.min_length, first.max_length) == (1, 255) or name.endswith("_id")
        return NAME if is_key else TEXT
    if isinstance(first, msgspec.inspect.ListType):
        return LIST if isinstance(first.item_type, msgspec.inspect.StrType) else JSON
    kinds: dict[Any, str] = {
        msgspec.inspect.BoolType: BOOL,
        msgspec.inspect.IntType: INT,
        msgspec.inspect.FloatType: NUMBER,
    }
    return kinds.get(type(first), TEXT if isinstance(first, _TEXTUAL) else JSON)


# -- the header ----------------------------------------------------------------------------------


def columns_of(name: str, header: Sequence[str], options: ReadOptions) -> list[Column]:
    """Raises: UnreadableFile."""
    columns: list[Column] = []
    unknown: list[str] = []
    for place, title in enumerate(header, start=1):
        column = _column(title, place, options)
        if column is None:
            unknown.append(title)
            column = Column(title, place, TEXT)
        elif column.path and any(column.path == other.path for other in columns):
            raise UnreadableFile(
                f"{name}: its header has the column {column.name[:_SHOWN]!r} twice."
            )
        columns.append(column)
    if unknown and not options.ignore_unknown:
        raise UnreadableFile(f"{name}: {unknown_columns(unknown, options.fields or {})}")
    _say_what_is_left_out(columns, options)
    return columns


def _column(title: str, place: int, options: ReadOptions) -> Column | None:
    fields, renames = options.fields, options.renames
    stripped = title.strip()
    for spelled in (title, stripped):
        if spelled in renames:
            target = renames[spelled]
            return _field(title, place, target, fields) if target else Column(title, place, TEXT)
    if _UNNAMED.fullmatch(title):
        return Column(title, place, ROW_NUMBER if place == 1 or stripped else NOTHING)
    if fields is None or title in fields:
        return _field(title, place, title, fields)
    if (known := {plain(field): field for field in fields}.get(plain(title))) is not None:
        options.notices.add(f"{title[:_SHOWN]!r} of the header is read as {known}.")
        return _field(title, place, known, fields)
    parent = stripped.partition(".")[0]
    # (A path below a field of JSON, or a source of --map.)
    if "." in stripped and fields.get(parent) == JSON:
        return _field(title, place, stripped, fields)
    if any(old.startswith(f"{title}.") for old in renames):
        return Column(title, place, TEXT, (title,))
    return None


def _field(title: str, place: int, target: str, fields: Mapping[str, str] | None) -> Column:
    path = (target,) if fields is None or target in fields else tuple(target.split("."))
    kind = (fields or {}).get(path[0], TEXT)
    return Column(title, place, TEXT if len(path) > 1 else kind, path)


def plain(title: str) -> str:
    """A title without its case and blanks."""
    return re.sub(r"[\s-]+", "_", title.strip()).casefold()


def _say_what_is_left_out(columns: Iterable[Column], options: ReadOptions) -> None:
    for column in columns:
        if column.kind == ROW_NUMBER:
            options.notices.add(
                f"Column {column.place} has no name; it is left out as a row number."
            )
        elif column.kind == NOTHING:
            options.notices.add(f"Column {column.place} has no name and no values; it is left out.")


def unknown_columns(unknown: Sequence[str], fields: Mapping[str, str]) -> str:
    """The message about unknown columns, with what to do."""
    named = ", ".join(repr(title[:_SHOWN]) for title in unknown[:20])
    meant = [(title, nearest(title, fields)) for title in unknown[:20]]
    renames = " ".join(f"--map {title[:_SHOWN]}={field}" for title, field in meant if field)
    suggestion = f" Do you mean {renames}?" if renames else ""
    delimiter = _other_delimiter(unknown)
    return (
        f"there is no field {named}.{suggestion}{delimiter} Known are {', '.join(fields)}. "
        "--map old=new renames a column, --ignore-unknown leaves out what is unknown."
    )


def _other_delimiter(unknown: Sequence[str]) -> str:
    if len(unknown) == 1 and (found := re.search(r"[,;\t|]", unknown[0])):
        spelled = {"\t": "tab"}.get(found[0], repr(found[0]))
        return f" Are the columns separated by --delimiter {spelled}?"
    return ""


def nearest(name: str, fields: Iterable[str]) -> str:
    """The field that is likely meant, or ""."""
    known = {_letters(field): field for field in fields}
    wanted = _letters(name)
    if wanted in known:
        return known[wanted]
    if (synonym := _SYNONYMS.get(plain(name), "")) in known.values():
        return synonym
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.75)
    return known[close[0]] if close else ""


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


# -- cells ---------------------------------------------------------------------------------------


class Cells:
    """The values of cells, by the kind of their column. All raise LineError."""

    def __init__(self, options: ReadOptions) -> None:
        given = options.nulls or frozenset()
        if USUAL in given:
            given = (given - {USUAL}) | _NULL_PRINTED
        self._nulls = DEFAULT_NULLS | given
        self._given_nulls = given
        # (--null '': that, and no other word.)
        self._doubts_words = "" not in given
        self._notices = options.notices

    def value(self, cell: str, column: Column) -> Any:
        """The value of a text cell; ABSENT if it is empty."""
        if cell in self._nulls:
            return ABSENT
        kind = column.kind
        if kind in (TEXT, NAME):
            if self._doubts_words and cell in _NULL_PRINTED and kind == TEXT and column.path:
                self._notices.add(
                    f"{column.name}: the word {cell} is kept as text; "
                    f"--null {cell} reads such cells as empty."
                )
            return self._name(cell, column) if kind == NAME else cell
        if kind in (ROW_NUMBER, NOTHING):
            return self._left_out(cell, column)
        try:
            return _READ[kind](cell, column.name)
        except LineError as error:
            if cell.strip().casefold() in _NULL_WORDS:
                raise self._null_word(cell, column) from error
            raise

    def fitted(self, value: Any, column: Column) -> Any:
        """A typed value (Parquet), converted to the type of its field where that loses nothing."""
        kind = column.kind
        if isinstance(value, str):
            if kind == TEXT:
                return ABSENT if value in self._given_nulls else value
            return self.value(value, column)
        if isinstance(value, bool):
            return value
        if kind in (TEXT, NAME) and _is_whole(value):
            return str(int(value))
        if kind == INT and _is_whole(value):
            return int(value)
        if kind == BOOL and isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        return value

    def _name(self, cell: str, column: Column) -> str:
        if self._doubts_words and cell.strip().casefold() in _NULL_WORDS:
            raise self._null_word(cell, column)
        if self._doubts_words and _FLOAT_KEY.fullmatch(cell):
            raise LineError(
                "invalid_value",
                column.name,
                f"{cell} is how pandas writes {cell.partition('.')[0]} in a column with gaps; "
                "write it as Int64; --null '' keeps it as it is",
            )
        return cell

    @staticmethod
    def _null_word(cell: str, column: Column) -> LineError:
        return LineError(
            "null_word",
            column.name,
            f"The word {cell.strip()} likely means an empty value; --null {cell.strip()} reads it "
            f"so, --null {USUAL} all such words; --null '' keeps them as they are",
        )

    @staticmethod
    def _left_out(cell: str, column: Column) -> Any:
        if column.kind == ROW_NUMBER and re.fullmatch(r"\d+", cell.strip()):
            return ABSENT
        if cell.strip():
            fault = (
                f"Column {column.place} has no name in the header, but contains {cell[:_SHOWN]!r}"
            )
            advice = f"--map {column.header}=FIELD names it, --map {column.header}= leaves it out"
            raise LineError("malformed_csv", "", f"{fault}; {advice}")
        return ABSENT


def _is_whole(value: Any) -> bool:
    if isinstance(value, int):
        return True
    if isinstance(value, float):
        return math.isfinite(value) and value == int(value)
    return isinstance(value, Decimal) and value.is_finite() and value == int(value)


def _json(cell: str, name: str) -> Any:
    try:
        return _raw.decode(cell)
    except msgspec.DecodeError as error:
        advice = ""
        if re.match(r"\s*[\[{].*'", cell, re.DOTALL):
            advice = "; Python and DuckDB print it so: write it as JSON (json.dumps, to_json)"
        raise LineError("malformed_json", name, f"Expected JSON: {error}{advice}") from error
    except UnicodeEncodeError as error:
        raise LineError("lone_surrogate", name, "Half of a surrogate pair") from error


def _either(cell: str, name: str) -> Any:
    return _json(cell, name) if cell.startswith("[") or _JSON_NUMBER.fullmatch(cell) else cell


def _moment(cell: str, name: str) -> Any:
    return msgspec.Raw(cell.encode()) if _JSON_NUMBER.fullmatch(cell) else cell


def _bool(cell: str, name: str) -> bool:
    truth = _TRUTHS.get(cell.strip().casefold())
    if truth is None:
        raise LineError("invalid_value", name, f"True or false is needed, got {cell[:_SHOWN]!r}")
    return truth


def _number(cell: str, name: str) -> Any:
    text = cell.strip()
    if _JSON_NUMBER.fullmatch(text):
        return msgspec.Raw(text.encode())
    found = _NUMBER.fullmatch(text)
    if found and (found[2] or found[3]):
        sign, whole, part, power = (group or "" for group in found.groups())
        whole = whole.lstrip("0") or "0"
        return msgspec.Raw(f"{sign.strip('+')}{whole}.{part or 0}{power}".encode())
    advice = ""
    if _COMMA.fullmatch(text):
        advice = "; decimals are written with a point, like " + re.sub(r"[.\s]", "", text).replace(
            ",", "."
        )
    raise LineError("invalid_value", name, f"A number is needed, got {cell[:_SHOWN]!r}{advice}")


def _int(cell: str, name: str) -> Any:
    # (A whole number of a column with gaps, as pandas prints it.)
    return _number(re.sub(r"\.0+$", "", cell.strip()), name)


def _list(cell: str, name: str) -> Any:
    text = cell.strip()
    if text.startswith("["):
        return _json(text, name)
    if text.startswith("{") and text.endswith("}"):
        items = _ARRAY_ITEM.findall(text)
        return [re.sub(r"\\(.)", r"\1", quoted) or bare.strip() for quoted, bare in items]
    return [item.strip() for item in text.split(",") if item.strip()]


_READ = {
    JSON: _json,
    EITHER: _either,
    MOMENT: _moment,
    BOOL: _bool,
    INT: _int,
    NUMBER: _number,
    LIST: _list,
}
