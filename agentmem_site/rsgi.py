"""What granian serves, in each of its processes."""

from django.conf import settings

from agentmem_site.parent import end_with_parent
from agentmem_site.wsgi import application as django  # makes the apps ready

from agentmem_site.serving.application import Application  # isort: skip

application = Application(
    django,
    threads=settings.SERVING["THREADS"],
    max_threads=settings.SERVING["MAX_THREADS"],
    transfers=settings.SERVING["TRANSFERS"],
    idle_s=settings.SERVING["IDLE_S"],
)

if settings.SUPERVISED:
    end_with_parent()

if settings.EMBED_THREAD:
    from memories.services.embed_thread import start_embedding

    start_embedding()
