"""accounts/sql holds the functions from here on."""

from importlib import import_module

from django.db import migrations

from agentmem_site.db.routines import HandOver

_FUNCTIONS = import_module("accounts.migrations.0002_functions")
_UUID7 = import_module("accounts.migrations.0003_uuid7")
_MEMBERS = import_module("accounts.migrations.0005_members_of_several")


class Migration(migrations.Migration):
    dependencies = [("accounts", "0005_members_of_several")]

    operations = [
        HandOver(
            {
                "agentmem_uuid7": _UUID7.CREATE,
                "agentmem_find_api_key": _MEMBERS.FIND_API_KEY.partition(";")[2],  # (drops, too)
                "agentmem_analyze": _FUNCTIONS.ANALYZE_TABLE,
            }
        )
    ]
