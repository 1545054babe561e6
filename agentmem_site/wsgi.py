"""The WSGI application that granian serves."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from agentmem_site.parent import end_with_parent

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentmem_site.settings")
application = get_wsgi_application()

if settings.SUPERVISED:
    end_with_parent()

if settings.EMBED_THREAD:
    from memories.services.embed_thread import start_embedding  # needs the apps, ready since above

    start_embedding()
