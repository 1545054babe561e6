"""The RSGI application that each of granian's processes serves."""

from typing import Any

from django.conf import settings

from agentmem_site.serving.parent import end_with_parent
from agentmem_site.wsgi import application as django  # loads the apps

from agentmem_site.serving.application import Application  # isort: skip

_serving: dict[str, Any] = settings.SERVING
application = Application(
    django,
    threads=_serving["THREADS"],
    max_threads=_serving["MAX_THREADS"],
    transfers=_serving["TRANSFERS"],
    idle_s=_serving["IDLE_S"],
)

if settings.SUPERVISED:
    end_with_parent()

if settings.EMBED_THREAD:
    from memories.services.embed_thread import start_embedding

    start_embedding()
