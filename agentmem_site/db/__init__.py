"""The database room: a PostgreSQL backend that knows tenant tables, their fields and their walls.

Knows no app. `ENGINE = "agentmem_site.db"` makes Django load `base.DatabaseWrapper` from here.
"""
