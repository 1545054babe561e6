"""The base of all pages of the console, and how values are displayed.

Each app's admin.py declares its pages as subclasses of `TenantAdmin`. The site itself, with its
dashboard and trash, is agentmem_site/console.
"""

from accounts.console import show
from accounts.console.admin import TenantAdmin
from accounts.console.context import actor_of
from accounts.console.forms import TenantForm

__all__ = ["TenantAdmin", "TenantForm", "actor_of", "show"]
