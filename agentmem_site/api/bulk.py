"""POST <resource>/bulk: the loader over HTTP. The body is loaded as it arrives, batch by batch;
committed batches stay, whatever happens to the rest."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from tempfile import TemporaryFile
from typing import IO, Any, cast

from django.db import DatabaseError
from django.http import HttpRequest
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import APIException, UnsupportedMediaType
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api.permissions import require
from accounts.api.schema import RecordSchema
from accounts.api.shapes import Query, Strict
from accounts.api.views import TenantViewSet
from accounts.roles import permission
from agentmem_site.api.request_body import RequestBody
from agentmem_site.bulk import LineError, LoadOptions, LoadReport, LoadStopped
from agentmem_site.bulk.options import DEFAULTS, PreparationFailed
from agentmem_site.bulk.readers import Source, UnreadableFile, read_options, source_of
from agentmem_site.bulk.reading import BadOption, ReadOptions
from agentmem_site.bulk.rejects import as_json
from agentmem_site.bulk.report import BadLine, Interrupted, Unprepared, Unreadable
from agentmem_site.bulk.times import DATE_ORDERS, zone_of
from agentmem_site.bulk.wording import reworded
from agentmem_site.db.outages import DISK_FULL, READ_ONLY, outage_of, sqlstate
from agentmem_site.services.loads import EMBED_FIRST, RESOURCES, run_load

MAX_BATCH_ROWS = 10_000
RETRY_AFTER_S = 5
EMBED = {"now": None, "later": 0}
ARRAY = "application/json"
LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
# Media type -> format of the body. (Lines may turn out to be an array, by what they begin with.)
_FORMATS = {
    ARRAY: "json",
    **dict.fromkeys(LINES, "auto"),
    CSV: "csv",
    "text/tab-separated-values": "csv",
    PARQUET: "parquet",
}
_MAGIC = {"gzip": b"\x1f\x8b", "x-gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "identity": b""}

_NAME = "The body"  # in messages

logger = logging.getLogger("agentmem.api")


class LoadRefusal(APIException):
    """A load that stopped: problem+json, with the report among its `members`."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        problems: list[dict[str, Any]] | None = None,
        members: dict[str, Any] | None = None,
        wait_s: int = 0,
    ) -> None:
        super().__init__(detail)
        self.status_code = status
        self.code = code
        self.problems = problems or []
        self.members = members or {}
        self.wait_s = wait_s


# -- shapes ---------------------------------------------------------------------------------------


class Several(serializers.CharField):
    """Texts with commas between them."""

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(data).split(",")


def _zone(name: str) -> None:
    try:
        zone_of(name)
    except ValueError as error:
        raise serializers.ValidationError(str(error)) from error


class BulkQuery(Query):
    on_error = serializers.ChoiceField(
        ["skip", "stop"],
        default="skip",
        help_text="A bad line is left out and reported in `rejects`; or it ends the load, with "
        "422.",
    )
    max_rejects = serializers.IntegerField(
        min_value=0, required=False, help_text="With `skip`: the load ends when more are rejected."
    )
    batch_size = serializers.IntegerField(
        min_value=1, max_value=MAX_BATCH_ROWS, default=5000, help_text="Rows per transaction."
    )
    strict_references = serializers.BooleanField(
        default=False, help_text="A line that names an unknown agent or user is a bad line."
    )
    ignore_unknown = serializers.BooleanField(
        default=False, help_text="Fields that the resource does not have are ignored."
    )
    preserve_timestamps = serializers.BooleanField(
        default=False, help_text="`created_at` and `updated_at` are those of the lines."
    )
    timezone = serializers.CharField(
        default="",
        validators=[_zone],
        help_text="Of times that name none: an IANA name, like Europe/Berlin or UTC. Without it "
        "such times are bad lines.",
    )
    date_order = serializers.ChoiceField(
        DATE_ORDERS,
        default="",
        help_text="Whether 01/02/2026 is the first of February (`dmy`) or the second of January "
        "(`mdy`).",
    )
    encoding = serializers.CharField(
        default="", help_text="Of a text that is not UTF-8: `cp1252`, `utf-16`, ..."
    )
    delimiter = serializers.CharField(
        default="",
        trim_whitespace=False,
        help_text="Between the cells of CSV: `,`, `;`, `tab` or `|`; else by the header.",
    )
    null = Several(
        required=False,
        allow_blank=True,
        help_text="Words, with commas between them: a cell of CSV that is one of them is empty. "
        "`usual`: NULL, None, NaN, NA and the like.",
    )
    map = Several(
        required=False,
        help_text="`old=new`, with commas between them: a column or a JSON key under another "
        "name. Paths have points (`user.id=user_id`); `old=` leaves it out.",
    )
    set = Several(
        required=False,
        help_text="`field=value`, with commas between them: the same value in every line.",
    )
    restore = serializers.BooleanField(
        default=False,
        help_text="A row in the trash is restored, and so is what a line names there. Requires "
        "the delete scope, too.",
    )
    dry_run = serializers.BooleanField(
        default=False, help_text="Everything is done, then rolled back."
    )


class MemoryBulkQuery(BulkQuery):
    embed = serializers.ChoiceField(
        list(EMBED),
        required=False,
        help_text="Memories without a vector get it during the load, or later from a worker. "
        f"By default those of the first {EMBED_FIRST:,} lines get it now.",
    )


class RejectSerializer(Strict):
    line = serializers.IntegerField(help_text="From 1; in an array, the element.")
    byte_offset = serializers.IntegerField(help_text="Where it begins in the decompressed body.")
    code = serializers.CharField()
    field = serializers.CharField(help_text="Empty if the whole line is bad.")
    message = serializers.CharField()


class CountsSerializer(Strict):
    inserted = serializers.IntegerField()
    updated = serializers.IntegerField()
    unchanged = serializers.IntegerField()
    deleted = serializers.IntegerField(help_text="In the trash, and left there.")
    duplicates = serializers.IntegerField(help_text="The same key again: the last one counts.")


class LoadReportSerializer(CountsSerializer):
    resource = serializers.CharField()
    read = serializers.IntegerField()
    rejected = serializers.IntegerField()
    batches = serializers.IntegerField(help_text="Transactions.")
    retries = serializers.IntegerField()
    last_line = serializers.IntegerField(help_text="Every line up to it is committed.")
    resumed_after = serializers.IntegerField(help_text="Always 0: requests do not resume.")
    seconds = serializers.FloatField()
    rows_per_second = serializers.IntegerField()
    dry_run = serializers.BooleanField()
    runs = CountsSerializer(required=False, help_text="Of sessions.")
    notices = serializers.ListField(
        child=serializers.CharField(), help_text="What was read in another way than it may seem."
    )
    rejects = RejectSerializer(many=True, help_text="The first 1,000.")


# -- the door -------------------------------------------------------------------------------------


class BulkSchema(RecordSchema):
    def get_summary(self) -> str:
        return f"Load {self.view.loads} in bulk"


class BulkViewSet(TenantViewSet):
    """Subclasses name what is loaded, and the resource whose scope is required."""

    schema = BulkSchema()
    loads = ""
    streams = True
    late_actions = ("create",)  # the loader opens a transaction for each batch
    unread = "the report leaves out what existed before"
    http_method_names = ["post"]
    serializer_class = LoadReportSerializer

    def query_class(self) -> type[Query]:
        return MemoryBulkQuery if self.loads == "memories" else BulkQuery

    @extend_schema(
        request={
            LINES[0]: OpenApiTypes.STR,
            ARRAY: {"type": "array", "items": {"type": "object", "additionalProperties": True}},
            CSV: OpenApiTypes.STR,
            PARQUET: OpenApiTypes.BINARY,
        },
        responses={200: LoadReportSerializer, 207: LoadReportSerializer},
    )
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """NDJSON, a JSON array, CSV or Parquet, compressed or not, of any length. A line is a whole
        row: a field left out takes its default. New rows are inserted, rows that differ are
        updated, the others stay untouched, so the same body may be sent again. 207 means that lines
        were rejected. An error that ends the load carries the `report` of what is committed."""
        query = dict(self.query)
        if query["restore"]:
            require(self.actor, permission(self.resource, "delete"))
        embed_first = EMBED.get(query.pop("embed", None), EMBED_FIRST)
        reading = self._reading(request, query)
        options = LoadOptions(
            skips_bad=query.pop("on_error") == "skip",
            min_batch_size=min(DEFAULTS.min_batch_size, query["batch_size"]),
            **query,
        )
        try:
            # (A dry run is one transaction, which must not wait for a client.)
            with body_source(request._request, reading, is_whole=options.dry_run) as source:
                report = run_load(
                    self.loads,
                    source.lines(),
                    options=options,
                    embed_first=embed_first,
                    notices=source.notices,
                    **self.by,
                )
        except UnreadableFile as error:
            raise LoadRefusal(400, "unreadable_body", _worded(str(error))) from error
        except LoadStopped as stopped:
            raise load_refusal(stopped, shows_counts=self.may_read) from stopped
        body = report_fields(report, shows_counts=self.may_read)
        return Response(body, 207 if report.rejected else 200)

    def _reading(self, request: Request, query: dict[str, Any]) -> ReadOptions:
        """How to read the body, by its type and the parameters, which it removes from `query`."""
        kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind not in _FORMATS:
            raise _Unsupported(
                f"Send JSON lines, with `Content-Type: {LINES[0]}`, a JSON array, as `{ARRAY}`, "
                f"CSV, as `{CSV}`, or Parquet, as `{PARQUET}`."
            )
        try:
            return read_options(
                RESOURCES[self.loads],
                format=_FORMATS[kind],
                encoding=query.pop("encoding"),
                delimiter=query.pop("delimiter"),
                nulls=query.pop("null", None),
                maps=query.pop("map", ()),
                sets=query.pop("set", ()),
                ignore_unknown=query["ignore_unknown"],
            )
        except BadOption as error:
            raise serializers.ValidationError({error.option: [_worded(str(error))]}) from error


@contextmanager
def body_source(request: HttpRequest, options: ReadOptions, *, is_whole: bool) -> Iterator[Source]:
    """The request's body; with `is_whole` all of it is received first.

    Raises: UnsupportedMediaType, UnreadableFile.
    """
    packing = request.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in _MAGIC:
        raise _Unsupported(f"`Content-Encoding` is gzip or zstd, not {packing!r}.")
    with ExitStack() as stack:
        body = cast(IO[bytes], RequestBody(request))
        if is_whole:
            body = stack.enter_context(_spooled(body))
        source = stack.enter_context(source_of(body, name=_NAME, options=options))
        _check_packing(source, packing)
        yield source


@contextmanager
def _spooled(body: IO[bytes]) -> Iterator[IO[bytes]]:
    """The body in an unnamed temporary file."""
    with TemporaryFile() as file:
        try:
            shutil.copyfileobj(body, file)
        except OSError as error:
            if outage_of(error):  # not the body's fault
                raise
            raise UnreadableFile(f"{_NAME}: {error.strerror or error}") from error
        file.seek(0)
        yield file


def _check_packing(source: Source, packing: str) -> None:
    if source.head and not source.head.startswith(_MAGIC[packing]):
        raise UnreadableFile(f"`Content-Encoding` is {packing}, but the body is not.")


class _Unsupported(UnsupportedMediaType):
    def __init__(self, detail: str) -> None:
        super().__init__("", detail)


class UserBulkViewSet(BulkViewSet):
    loads = "users"
    tag = "Users"
    resource = "user"


class AgentBulkViewSet(BulkViewSet):
    loads = "agents"
    tag = "Agents"
    resource = "agent"


class BlockBulkViewSet(BulkViewSet):
    loads = "blocks"
    tag = "Blocks"
    resource = "agent"


class ToolBulkViewSet(BulkViewSet):
    loads = "tools"
    tag = "Tools"
    resource = "agent"


class SessionBulkViewSet(BulkViewSet):
    loads = "sessions"
    tag = "Sessions"
    resource = "session"


class MessageBulkViewSet(BulkViewSet):
    loads = "messages"
    tag = "Messages"
    resource = "session"


class MemoryBulkViewSet(BulkViewSet):
    loads = "memories"
    tag = "Memories"
    resource = "memory"


# What is loaded -> the resource whose scope is required.
SCOPED_BY = {view.loads: view.resource for view in BulkViewSet.__subclasses__()}


# -- responses ------------------------------------------------------------------------------------


def report_fields(report: LoadReport, *, shows_counts: bool = True) -> dict[str, Any]:
    """The command's report and the rejected lines. Only callers that may read rows get their
    counts, which show what existed before."""
    fields = report.as_dict()
    if not shows_counts:
        hidden = {*asdict(report.counts), *report.children}
        fields = {name: value for name, value in fields.items() if name not in hidden}
    return {
        **fields,
        "notices": [_worded(notice) for notice in report.notices],
        "rejects": [
            {**as_json(error), "message": _worded(error.message)} for error in report.rejects
        ],
    }


def _worded(text: str) -> str:
    return reworded(text, _PARAMETERS)


def load_refusal(
    stopped: LoadStopped, *, shows_counts: bool = True, says: Callable[[str], str] = _worded
) -> LoadRefusal:
    """`says` replaces the command's options in a message by those of the caller."""
    report = stopped.report
    committed = (
        f"Lines up to {report.last_line:,} are committed."
        if report.last_line and not report.dry_run
        else "Nothing is stored."
    )
    members: dict[str, Any] = {"report": report_fields(report, shows_counts=shows_counts)}
    match stopped:
        case BadLine(error=LineError() as error):
            message = says(error.message)
            problem = {"field": error.field, "code": error.code, "message": message}
            members |= {"line": error.line, "byte_offset": error.offset}
            detail = f"{says(str(stopped))}. {committed} Correct the line and send it all again."
            return LoadRefusal(422, error.code, detail, problems=[problem], members=members)
        case BadLine():
            return LoadRefusal(422, "too_many_rejects", f"{stopped} {committed}", members=members)
        case Unreadable():
            detail = f"{says(str(stopped))} {committed}"
            return LoadRefusal(400, "unreadable_body", detail, members=members)
        case LoadStopped() if (outage := outage_of(stopped.__cause__)) in (DISK_FULL, READ_ONLY):
            logger.warning("A load stopped: %s", outage.message)
            detail = f"{outage.message} {committed} {_AGAIN}"
            return LoadRefusal(503, outage.code, detail, members=members, wait_s=outage.wait_s)
        case Interrupted() | Unprepared():
            # (The message, with an address or a file, is for the server's log.)
            is_encoder = isinstance(stopped.__cause__, PreparationFailed)
            cause = stopped.__cause__
            # (PostgreSQL's message may quote a value.)
            reason = str(stopped)
            if isinstance(cause, DatabaseError):
                reason = f"SQLSTATE {sqlstate(cause) or 'none'}"
            logger.warning("A load stopped: %s", reason)
            what = "No encoder can be used" if is_encoder else "The database cannot answer"
            again = isinstance(stopped, Interrupted)
            return LoadRefusal(
                503,
                "encoder_unavailable" if is_encoder else "unavailable",
                f"{what} right now. {committed} {_AGAIN if again else _EMBED_LATER}",
                members=members,
                wait_s=RETRY_AFTER_S if again else 0,
            )
    logger.error("A load was refused by the database", exc_info=stopped)
    detail = f"The database refused this; the log has the reason by the request id. {committed}"
    return LoadRefusal(500, "error", detail, members=members)


# The command's options by the names that they have here.
_PARAMETERS = {
    str(name).replace("_", "-"): f"`{name}`" for name in BulkQuery().fields if name != "on_error"
}
_AGAIN = "Send it all again: what is stored stays unchanged."
_EMBED_LATER = "With `embed=later` the memories are stored, and get their vectors from a worker."
