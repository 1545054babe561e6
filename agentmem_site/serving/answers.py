"""From Django's answer to granian's."""

import errno
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from django.http import HttpResponse

Headers = list[tuple[str, str]]
WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_JOINED_UP_TO = 4 * 1024 * 1024  # a file of the console's
_AT_ONCE_BYTES = 4096  # what poll() says there is room for


@dataclass(slots=True)
class Answer:
    """`body` is bytes, or, of what is made while it is sent, parts, to be closed at their end."""

    status: int
    headers: Headers
    body: bytes | Iterable[bytes]


def environ_of(scope: Any, body: IO[bytes], length: int | None) -> dict[str, Any]:
    """The request as PEP 3333 has it. `length` in bytes; None: chunked, until the end."""
    server, _, port = scope.server.rpartition(":")
    client, _, client_port = scope.client.rpartition(":")
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": server,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": client.strip("[]"),
        "REMOTE_PORT": client_port,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": body,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope.headers.items():
        if "_" in name:  # it would read like another's
            continue
        key = f"HTTP_{name.upper().replace('-', '_')}"
        before = [environ[key]] if key in environ else []
        environ[key] = ("; " if name == "cookie" else ",").join([*before, value])
    environ.setdefault("HTTP_HOST", scope.authority or scope.server)
    environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE", "")
    environ.pop("HTTP_CONTENT_LENGTH", None)
    if length is not None:
        environ["CONTENT_LENGTH"] = str(length)
        environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ


def answer_of(application: WSGI, environ: dict[str, Any]) -> Answer:
    """Calls the application, in the thread at hand."""
    answer = Answer(500, [], b"")

    def start_response(status: str, headers: Headers, exc_info: Any = None) -> None:
        answer.status = int(status.split(" ", 1)[0])
        answer.headers = [(name.lower(), value) for name, value in headers]

    parts = application(environ, start_response)
    length = dict(answer.headers).get("content-length")
    is_made_as_it_goes = getattr(parts, "streaming", False)
    if is_made_as_it_goes and (length is None or int(length) > _JOINED_UP_TO):
        answer.body = parts
    else:
        with closing_of(parts):
            answer.body = b"".join(parts)
    return answer


def headers_of(response: HttpResponse) -> Headers:
    return [(name.lower(), value) for name, value in response.items()]


@contextmanager
def closing_of(parts: Iterable[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()


class Pipe:
    """A named pipe that granian reads as a file: what it has not sent yet is not made yet, so that
    an answer of any length costs no memory. (Its stream of an answer has no such back pressure.)"""

    def __enter__(self) -> "Pipe":
        self._folder = TemporaryDirectory(prefix="agentmem-")
        self.path = str(Path(self._folder.name, "answer"))
        os.mkfifo(self.path, 0o600)
        self.sent_bytes = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def send(self, parts: Iterable[bytes], *, idle_s: float) -> None:
        """In the thread at hand. Ends early when the client has gone, or takes nothing for `idle_s`
        seconds."""
        gone = suppress(BrokenPipeError, TimeoutError)
        with closing_of(parts), gone, _opened(self.path, idle_s) as pipe:
            writable = select.poll()
            writable.register(pipe, select.POLLOUT)
            for part in parts:
                left = memoryview(part)
                while left:
                    if not writable.poll(1000 * idle_s):
                        raise TimeoutError
                    written = os.write(pipe, left[:_AT_ONCE_BYTES])
                    self.sent_bytes += written
                    left = left[written:]


@contextmanager
def _opened(path: str, within_s: float) -> Iterator[int]:
    """For writing, once its reader is there. Raises: TimeoutError."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)
    try:
        yield pipe
    finally:
        os.close(pipe)
