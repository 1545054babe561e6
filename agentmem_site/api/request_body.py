"""The body of a request, streamed from the socket."""

import io
from typing import Any

from django.http import HttpRequest


class BodyCutShort(OSError):
    """The connection ended before the body did."""


class RequestBody(io.RawIOBase):
    """Readable once, from one thread. A chunked body that is cut short looks complete, since the
    server does not report it; its last line is then incomplete."""

    def __init__(self, request: HttpRequest) -> None:
        self._input: Any = request.META["wsgi.input"]
        is_chunked = "chunked" in request.headers.get("Transfer-Encoding", "").lower()
        self._left = None if is_chunked else int(request.META.get("CONTENT_LENGTH") or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer) if self._left is None else min(len(buffer), self._left)
        if not wanted:
            return 0
        data = self._input.read(wanted)
        if self._left is not None:
            self._left -= len(data)
            if not data:
                raise BodyCutShort(f"the body ends {self._left:,} bytes before its Content-Length")
        buffer[: len(data)] = data
        return len(data)
