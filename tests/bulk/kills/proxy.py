"""A TCP proxy in front of PostgreSQL's Unix socket, which can break connections at given points."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

# Messages of the client, recognized by their bytes. (`ON COMMIT DROP` has no zero after it.)
COMMIT, COPY = b"COMMIT\0", b"COPY "
_BACKEND_KEY = b"K\0\0\0"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, not FIN


@dataclass
class Trap:
    """What to do at the `nth` such moment, and how many of its bytes pass first.

    `stage`: before (none), half, sent (all), answered (the server has done it, and its answer is
    held back), half answered.
    """

    moment: str  # connect, copy, commit
    nth: int
    stage: str
    act: Callable[[], None]
    ends_client: bool = False  # nothing more of the client passes
    seen: int = 0
    is_sprung: bool = False

    def is_due(self, moment: str) -> bool:
        if moment != self.moment or self.is_sprung:
            return False
        self.seen += 1
        self.is_sprung = self.seen == self.nth
        return self.is_sprung


@dataclass(eq=False)
class Link:
    """One connection: the client's end and the server's."""

    client: socket.socket
    server: socket.socket
    backend: int = 0  # its pid
    held: Trap | None = None  # until the server answers

    def close(self, *, hard: bool = True) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                if hard and end is self.client:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # (After close alone, a thread that is reading would stay in its read.)
                end.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                end.close()


@dataclass
class Proxy:
    target: str  # the path of the server's socket; "@..." in Linux's abstract namespace
    trap: Trap | None = None
    links: list[Link] = field(default_factory=list)
    down_until: float = 0  # until then, connections are refused
    connections: int = 0
    commits: int = 0
    _flowing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "Proxy":
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop()

    def drop(self, *, down_s: float = 0, hard: bool = True) -> None:
        self.down_until = time.monotonic() + down_s
        for link in list(self.links):
            link.close(hard=hard)

    def stall(self, seconds: float) -> None:
        """Lets nothing pass for that long."""
        self._flowing.clear()
        threading.Timer(seconds, self._flowing.set).start()

    def backends(self) -> list[int]:
        return [link.backend for link in list(self.links) if link.backend]

    # -- threads -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._spring("connect")
            server = socket.socket(socket.AF_UNIX)
            try:
                if time.monotonic() < self.down_until:
                    raise ConnectionRefusedError
                server.connect("\0" + self.target[1:] if self.target[0] == "@" else self.target)
            except OSError:
                client.close()
                server.close()
                continue
            link = Link(client, server)
            self.links.append(link)
            for pump in (self._forth, self._back):
                threading.Thread(target=pump, args=[link], daemon=True).start()

    def _spring(self, moment: str) -> None:
        """For moments without bytes."""
        if self.trap and self.trap.is_due(moment):
            self.trap.act()

    def _forth(self, link: Link) -> None:
        with suppress(OSError):
            while data := link.client.recv(65536):
                self._flowing.wait()
                trap = self._due(data)
                if trap is None:
                    link.server.sendall(data)
                elif trap.stage in ("before", "half"):
                    link.server.sendall(data[: len(data) // 2 if trap.stage == "half" else 0])
                    rest = data[len(data) // 2 if trap.stage == "half" else 0 :]
                    trap.act()
                    if trap.ends_client:
                        break
                    self._flowing.wait()
                    link.server.sendall(rest)
                elif trap.stage == "sent":
                    link.server.sendall(data)
                    trap.act()
                else:
                    link.held = trap
                    link.server.sendall(data)
        self._end(link)

    def _due(self, data: bytes) -> Trap | None:
        with self._lock:
            due = None
            if COPY in data:
                due = self.trap and self.trap.is_due("copy")
            if COMMIT in data:
                self.commits += 1
                due = due or (self.trap and self.trap.is_due("commit"))
            return self.trap if due else None

    def _back(self, link: Link) -> None:
        with suppress(OSError):
            while data := link.server.recv(65536):
                if not link.backend and (at := data.find(_BACKEND_KEY)) >= 0:
                    link.backend = int.from_bytes(data[at + 5 : at + 9], "big")
                self._flowing.wait()
                trap, link.held = link.held, None
                if trap:
                    half = len(data) // 2 if trap.stage == "half answered" else 0
                    link.client.sendall(data[:half])
                    data = data[half:]
                    trap.act()
                    self._flowing.wait()
                link.client.sendall(data)
        self._end(link)

    def _end(self, link: Link) -> None:
        link.close(hard=False)
        with self._lock, suppress(ValueError):
            self.links.remove(link)
