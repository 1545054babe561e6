"""Log lines as JSON objects, one a line, with the id of their request.

They contain nothing that people said. The line of an exception has its class, SQLSTATE and frames
(file, line, code), never its message, which may quote a value, nor its locals. A path may contain
a person's name, so lines about a request name its route.
"""

import json
import logging
import re
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from django.contrib.admindocs.views import simplify_regex

from agentmem_site.api.middleware import current_request_id

_CAUSES = 5
_PARAMETER = re.compile(r"<(?:[^>:]+:)?(\w+)>")


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, request id; `fields` of the record; class, SQLSTATE and frames
    of an exception and its causes. A refused request (4xx) has no frames: nothing failed."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if request_id := current_request_id.get() or _request_id(record):
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and getattr(record, "status_code", 500) >= 500:
            line |= _exception_fields(error)
        return json.dumps(line, default=str)


def _exception_fields(error: BaseException) -> dict[str, Any]:
    """`exception`, `causes`, `sqlstate` and `frames`, without the message."""
    chain = list(_chain(error))
    fields: dict[str, Any] = {"exception": _name(error)}
    if len(chain) > 1:
        fields["causes"] = [_name(cause) for cause in chain[1:]]
    states = [state for cause in chain if (state := getattr(cause, "sqlstate", None))]
    if states:
        fields["sqlstate"] = states[0]
    frames = (
        f"{_name(cause)}\n{''.join(traceback.format_tb(cause.__traceback__))}" for cause in chain
    )
    fields["frames"] = "".join(frames)
    return fields


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes."""
    current: BaseException | None = error
    for _ in range(_CAUSES):
        if current is None:
            return
        yield current
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _message(record: logging.LogRecord) -> str:
    """The message. Django's messages about a request quote its path, which the route replaces."""
    request = getattr(record, "request", None)
    path = getattr(request, "path", None)
    if path is None or not isinstance(record.args, tuple):
        return record.getMessage()
    match = getattr(request, "resolver_match", None)
    route = template_of(match.route) if match else "(no route)"
    args = tuple(route if value == path else value for value in record.args)
    return str(record.msg) % args if args else str(record.msg)


@lru_cache(maxsize=1024)  # there are few routes, whatever is requested
def template_of(route: str) -> str:
    """`^api/v1/^agents/(?P<agent_id>[^/]+)/?$` -> `/api/v1/agents/{agent_id}`"""
    plain = _PARAMETER.sub(r"{\1}", simplify_regex(route))
    return plain.rstrip("/") or "/"


def _request_id(record: logging.LogRecord) -> str:
    return str(getattr(getattr(record, "request", None), "id", ""))
