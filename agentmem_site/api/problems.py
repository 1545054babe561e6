"""Every error of the API as problem+json (RFC 9457)."""

import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, TooManyFieldsSent
from django.db import DataError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework.exceptions import (
    APIException,
    ErrorDetail,
    NotAcceptable,
    NotAuthenticated,
    UnsupportedMediaType,
    ValidationError,
)
from rest_framework.response import Response

from accounts.errors import Conflict, Forbidden, Invalid, NotFound, ServiceError, Unavailable
from agentmem_site.api.bulk import LoadRefusal
from agentmem_site.api.middleware import current_request_id
from agentmem_site.db.outages import outage_of, sqlstate
from agentmem_site.db.refusals import reason
from memories.embeddings import EncoderError

logger = logging.getLogger("agentmem.api")

PROBLEM = "application/problem+json"
_STATUS = {NotFound: 404, Conflict: 409, Invalid: 400, Forbidden: 403, Unavailable: 503}
_MESSAGES = {  # in place of DRF's
    NotAuthenticated: "Send an API key: `X-API-Key: agm_...` or `Authorization: Bearer agm_...`.",
    UnsupportedMediaType: "Send JSON, with `Content-Type: application/json`.",
    NotAcceptable: "The response is JSON: send `Accept: application/json`.",
}


def problem_response(error: Exception, context: dict[str, Any]) -> Response | None:
    """The response to an error in a view; None for a bug, which `server_error` handles."""
    parts = _parts(error)
    if parts is None:
        return None
    status, headers, body = parts
    return Response(body, status, headers=headers, content_type=PROBLEM)


def _parts(error: Exception) -> tuple[int, dict[str, str], dict[str, Any]] | None:
    """(status, headers, body)"""
    match error:
        case ValidationError():
            problems = list(_flatten(error.detail))
            return 400, {}, _problem(400, "invalid", _summary(problems), problems)
        case LoadRefusal():
            status = error.status_code
            headers = {"Retry-After": str(error.wait_s)} if error.wait_s else {}
            body = _problem(status, error.code, str(error.detail), error.problems)
            return status, headers, {**body, **error.members}
        case APIException():
            headers = {}
            if challenge := getattr(error, "auth_header", None):
                headers["WWW-Authenticate"] = challenge
            if wait := getattr(error, "wait", None):
                headers["Retry-After"] = str(int(wait))
            code = _CODES.get(str(error.default_code), str(error.default_code))
            detail = _MESSAGES.get(type(error), str(error.detail))
            return error.status_code, headers, _problem(error.status_code, code, detail)
        case NotFound() | Http404():
            # One answer for all: unknown, deleted and another organization's look the same.
            return 404, {}, _problem(404, NotFound.code, NotFound().args[0])
        case EncoderError():
            # The message (a file, an address) is for the operator, not for the caller.
            logger.warning("%s", error)
            detail = f"{EncoderError.__doc__} The server's log says why."
            headers = {"Retry-After": "5"} if error.is_temporary else {}
            return 503, headers, _problem(503, error.code, detail)
        case ServiceError():
            status = next(s for kind, s in _STATUS.items() if isinstance(error, kind))
            message = str(error)
            problems = [{"field": error.field, "code": error.code, "message": message}]
            return (
                status,
                {},
                _problem(status, error.code, message, problems if error.field else []),
            )
        case PermissionDenied():
            return 403, {}, _problem(403, Forbidden.code, Forbidden().args[0])
        case TooManyFieldsSent():
            return 400, {}, _problem(400, "invalid", "There are too many parameters.")
        case OperationalError() if sqlstate(error).startswith("54"):
            # PostgreSQL's own limits, e.g. 1 MB of words in a search document
            detail = "A value is larger than PostgreSQL can hold or index."
            return 400, {}, _problem(400, "too_large", detail)
        case DataError():
            logger.warning("A value reached the database unchecked (SQLSTATE %s)", sqlstate(error))
            return 400, {}, _problem(400, "invalid", "A value is out of the range of its column.")
    outage = outage_of(error)
    if outage is None:
        return None
    logger.warning("%s (%s)", outage.message, reason(error))
    headers = {"Retry-After": str(outage.wait_s)}
    return 503, headers, _problem(503, outage.code, outage.message)


_CODES = {
    "parse_error": "malformed_json",
    "authentication_failed": "unauthenticated",
    "not_authenticated": "unauthenticated",
    "permission_denied": "forbidden",
}


def _flatten(detail: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """DRF's nested errors by field -> one {field, code, message} each."""
    if isinstance(detail, dict):
        for name, nested in detail.items():
            is_own = name == "non_field_errors"
            yield from _flatten(nested, path if is_own else f"{path}.{name}".strip("."))
    elif isinstance(detail, list):
        for index, nested in enumerate(detail):
            is_leaf = isinstance(nested, ErrorDetail)
            yield from _flatten(nested, path if is_leaf else f"{path}.{index}".strip("."))
    else:
        code = getattr(detail, "code", "invalid")
        yield {"field": path or None, "code": code, "message": str(detail)}


def _summary(problems: list[dict[str, Any]]) -> str:
    first = [f"{p['field']}: {p['message']}" if p["field"] else p["message"] for p in problems[:3]]
    rest = len(problems) - len(first)
    return " ".join(first) + (f" And {rest} more." if rest else "")


def _problem(
    status: int, code: str, detail: str, problems: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": current_request_id.get(),
        "errors": problems or [],
    }


# -- errors outside the views: handler400 to handler500 of the URL configuration -------------------


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith(("/api/", "/health/"))


def plain_problem(status: int, code: str, detail: str) -> HttpResponse:
    return JsonResponse(_problem(status, code, detail), status=status, content_type=PROBLEM)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.bad_request(request, exception)
    return plain_problem(400, "invalid", "This request is malformed.")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _is_api(request):
        return defaults.page_not_found(request, exception)
    return plain_problem(404, "no_such_route", "There is no such route: /api/docs/ lists them all.")


def server_error(request: HttpRequest) -> HttpResponse:
    if not _is_api(request):
        return defaults.server_error(request)
    return plain_problem(
        500, "error", "Something went wrong; the server's log has it under the request id."
    )
