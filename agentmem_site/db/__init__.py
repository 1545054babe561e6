"""The database room: a PostgreSQL backend with tenant tables, their fields and their walls.

Knows no app. With `ENGINE = "agentmem_site.db"`, Django loads `base.DatabaseWrapper` from here.
"""
