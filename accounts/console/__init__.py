"""What the pages of the console share: the base of every list and form, and how values look.

Each app's admin.py declares its pages on top of `TenantAdmin`; the site itself, with its dashboard
and trash, is agentmem_site/console.
"""

from accounts.console import show
from accounts.console.admin import TenantAdmin
from accounts.console.context import actor_of
from accounts.console.forms import TenantForm

__all__ = ["TenantAdmin", "TenantForm", "actor_of", "show"]
