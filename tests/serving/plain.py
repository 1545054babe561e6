"""A WSGI application that echoes its environment; served like ours, without a database."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentmem_site.settings")
django.setup()

from agentmem_site.serving.application import Application  # noqa: E402  (after setup)

PART = b"x" * 65_536


class Parts:
    streaming = True

    def __init__(self, count: int) -> None:
        self._count = count
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self._count):
            yield PART

    def close(self) -> None:
        self.is_closed = True
        created.append(self)


created: list[Parts] = []


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    match environ["PATH_INFO"]:
        case "/parts":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Parts(int(environ["QUERY_STRING"]))
        case "/closed":
            start_response("200 OK", [])
            return [str(len(created)).encode()]
    body = environ["wsgi.input"].read()
    told = {name: value for name, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({**told, "body": body.decode("latin-1")}).encode()]


application = Application(wsgi, threads=2, max_threads=8, transfers=2, idle_s=4)
