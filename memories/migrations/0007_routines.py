"""memories/sql holds the functions from here on; the type of a filter stays a migration's."""

from importlib import import_module

from django.db import migrations

from agentmem_site.db.routines import HandOver

_SEARCH = import_module("memories.migrations.0003_search")


class Migration(migrations.Migration):
    dependencies = [("memories", "0006_unreadable"), ("accounts", "0006_routines")]

    operations = [
        HandOver(
            {
                "agentmem_slice": _SEARCH.SLICE,
                "agentmem_nearest": _SEARCH.NEAREST,
                "agentmem_search": _SEARCH.SEARCH,
            }
        )
    ]
