"""The worker inside a server process, so that an installation needs no second one."""

import threading

from memories.services.embed_worker import EmbedWorker

# Small: the encoder also serves the searches of this process, which come between two batches.
BATCH_SIZE = 32


def start_embedding() -> threading.Thread:
    """A daemon thread. No model is loaded until a memory is pending; what it had claimed when the
    process ended is pending again after the lease."""
    thread = threading.Thread(
        target=EmbedWorker(batch_size=BATCH_SIZE).run, name="embed_worker", daemon=True
    )
    thread.start()
    return thread
