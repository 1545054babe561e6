"""Converts requests and responses between granian (RSGI) and Django (WSGI)."""

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

_MAX_JOINED_BYTES = 4 * 1024 * 1024  # a static file of the console
_WRITE_BYTES = 4096  # poll() guarantees room for this many


@dataclass(slots=True)
class ServerResponse:
    """A response. `body` is bytes, or for a streaming response its parts, to be closed at the
    end."""

    status: int
    headers: Headers
    body: bytes | Iterable[bytes]


def wsgi_environ(scope: Any, body: IO[bytes], length: int | None) -> dict[str, Any]:
    """The request's WSGI environment (PEP 3333). `length` in bytes; None: chunked."""
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
        if "_" in name:  # it could pass for another header
            continue
        key = f"HTTP_{name.upper().replace('-', '_')}"
        earlier = [environ[key]] if key in environ else []
        environ[key] = ("; " if name == "cookie" else ",").join([*earlier, value])
    environ.setdefault("HTTP_HOST", scope.authority or scope.server)
    environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE", "")
    environ.pop("HTTP_CONTENT_LENGTH", None)
    if length is not None:
        environ["CONTENT_LENGTH"] = str(length)
        environ.pop("HTTP_TRANSFER_ENCODING", None)
    return environ


def call_wsgi(application: WSGI, environ: dict[str, Any]) -> ServerResponse:
    """Calls the application in the current thread."""
    answer = ServerResponse(500, [], b"")

    def start_response(status: str, headers: Headers, exc_info: Any = None) -> None:
        answer.status = int(status.split(" ", 1)[0])
        answer.headers = [(name.lower(), value) for name, value in headers]

    parts = application(environ, start_response)
    length = dict(answer.headers).get("content-length")
    is_streaming = getattr(parts, "streaming", False)
    if is_streaming and (length is None or int(length) > _MAX_JOINED_BYTES):
        answer.body = parts
    else:
        with closed_after(parts):
            answer.body = b"".join(parts)
    return answer


def header_list(response: HttpResponse) -> Headers:
    return [(name.lower(), value) for name, value in response.items()]


@contextmanager
def closed_after(parts: Iterable[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()


class Pipe:
    """A named pipe that granian reads as a file. It gives back pressure, which granian's own
    streams lack: a response of any length costs no memory."""

    def __enter__(self) -> "Pipe":
        self._folder = TemporaryDirectory(prefix="agentmem-")
        self.path = str(Path(self._folder.name, "answer"))
        os.mkfifo(self.path, 0o600)
        self.sent_bytes = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def send(self, parts: Iterable[bytes], *, idle_s: float) -> None:
        """Sends in the current thread. Ends early if the client disconnects, or reads nothing for
        `idle_s` seconds."""
        disconnected = suppress(BrokenPipeError, TimeoutError)
        with closed_after(parts), disconnected, _opened(self.path, idle_s) as pipe:
            writable = select.poll()
            writable.register(pipe, select.POLLOUT)
            for part in parts:
                rest = memoryview(part)
                while rest:
                    if not writable.poll(1000 * idle_s):
                        raise TimeoutError
                    written = os.write(pipe, rest[:_WRITE_BYTES])
                    self.sent_bytes += written
                    rest = rest[written:]


@contextmanager
def _opened(path: str, within_s: float) -> Iterator[int]:
    """Opens the pipe for writing as soon as it has a reader. Raises: TimeoutError."""
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
