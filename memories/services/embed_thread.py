"""The worker inside a server process, so that an installation needs no second one."""

import logging
import threading
import time

from memories.services.embed_worker import MAX_PAUSE_S, EmbedWorker

# Small: the encoder also serves the searches of this process, between two batches.
BATCH_SIZE = 32

logger = logging.getLogger(__name__)


def start_embedding() -> threading.Thread:
    """Starts a daemon thread. No model is loaded until a memory is pending. If the process ends,
    claimed memories are pending again after the lease."""
    thread = threading.Thread(target=_embed_for_ever, name="embed_worker", daemon=True)
    thread.start()
    return thread


def _embed_for_ever() -> None:
    while True:
        try:
            EmbedWorker(batch_size=BATCH_SIZE).run()
        except Exception:
            # Nobody would notice that the thread has ended, except by memories that stay pending.
            logger.exception("The embedding thread failed; it starts again.")
            time.sleep(MAX_PAUSE_S)
