"""Parsers of JSON bodies: what PostgreSQL or Python could not store unchanged is refused."""

from collections.abc import Mapping
from typing import IO, Any

from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser

from accounts.strict_json import RefusedJson, parse_json


class BodyTooLarge(APIException):
    status_code = 413
    default_code = "body_too_large"
    default_detail = "The body is too large."


class StrictJSONParser(BaseParser):
    """UTF-8 JSON. Refuses NUL and lone surrogates (in keys too), NaN and Infinity, numbers of more
    than 38 digits, duplicate keys, more than 64 levels, and a body over the limit."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            return parse_json(read_body(stream, parser_context), name="The body")
        except RefusedJson as refusal:
            raise ParseError(str(refusal)) from refusal


class UnreadJSONParser(BaseParser):
    """JSON as bytes, for a view that decodes it itself."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        return read_body(stream, parser_context)


def read_body(stream: IO[Any], parser_context: Mapping[str, Any] | None) -> bytes:
    """Raises: BodyTooLarge (more than the view's `max_body_bytes`)."""
    max_bytes = (parser_context or {})["view"].max_body_bytes
    body: bytes = stream.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
    return body
