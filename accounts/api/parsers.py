"""JSON at the door: what PostgreSQL or Python could not keep as it came is refused here."""

from collections.abc import Mapping
from typing import IO, Any

from django.conf import settings
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser

from accounts.strict_json import RefusedJson, parse_json


class BodyTooLarge(APIException):
    status_code = 413
    default_code = "body_too_large"
    default_detail = "The body is too large."


class StrictJSONParser(BaseParser):
    """UTF-8 JSON. Refused: NUL and lone surrogates (in keys too), NaN and Infinity, numbers beyond
    38 digits, a key given twice, more than 64 levels, a body over the limit."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        max_bytes = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise BodyTooLarge(f"The body is larger than {max_bytes} bytes.")
        try:
            return parse_json(body, called="The body")
        except RefusedJson as refusal:
            raise ParseError(str(refusal)) from refusal
