"""The console at /admin/: who gets in, and the context that every page of it runs in."""

from agentmem_site.console.site import ConsoleSite

__all__ = ["ConsoleSite"]
