from django.apps import AppConfig
from django.contrib.admin import apps as admin_apps


class SiteConfig(AppConfig):
    """The site's own commands and system checks."""

    name = "agentmem_site"
    default = True

    def ready(self) -> None:
        from agentmem_site import checks  # noqa: F401  (registers the checks, after the apps are loaded)


class ConsoleConfig(admin_apps.AdminConfig):
    """django.contrib.admin with our own site class."""

    default = False
    default_site = "agentmem_site.console.ConsoleSite"
