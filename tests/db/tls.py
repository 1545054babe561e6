"""PostgreSQL behind TLS: a server on 127.0.0.1 with its own certificate, which forwards to a Unix
socket (the embedded binaries are built without TLS)."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """(certificate, key) for 127.0.0.1, self-signed."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    return certificate, key


@contextmanager
def behind_tls(target: str, certificate: Path, key: Path) -> Iterator[int]:
    """The port that forwards to the Unix socket `target`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(client: socket.socket) -> None:
            with suppress(OSError), client:
                while (request := client.recv(8)) != _SSL_REQUEST:
                    if not request:
                        return
                    client.sendall(b"N")  # no GSSAPI; unencrypted clients are refused
                client.sendall(b"S")
                with (
                    context.wrap_socket(client, server_side=True) as secure,
                    socket.socket(socket.AF_UNIX) as server,
                ):
                    server.connect("\0" + target[1:] if target[0] == "@" else target)
                    back = threading.Thread(target=pump, args=[server, secure], daemon=True)
                    back.start()
                    pump(secure, server)
                    back.join()

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    threading.Thread(target=serve, args=[client], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]


def socket_of(settings: dict[str, Any]) -> str:
    return f"{settings['HOST']}/.s.PGSQL.{settings['PORT']}"
