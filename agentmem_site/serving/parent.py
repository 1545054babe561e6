"""Ends a server process with its parent; otherwise it would serve on with nobody to stop it."""

import os
import signal
import threading
import time

_CHECKS_EVERY_S = 1.0
_STOPS_WITHIN_S = 10.0


def end_with_parent() -> threading.Thread:
    """Watches the parent process from a daemon thread. When it ends, sends SIGTERM to this process,
    and kills it if that is not enough."""
    parent = os.getppid()
    thread = threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True)
    thread.start()
    return thread


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECKS_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_STOPS_WITHIN_S)
    os._exit(1)
