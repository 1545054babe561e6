"""The WSGI application, for your own WSGI server; `serve` runs agentmem_site/rsgi.py."""

import os

from django.core.wsgi import get_wsgi_application

from agentmem_site.variables import exit_on_refusal

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentmem_site.settings")
with exit_on_refusal():
    application = get_wsgi_application()
