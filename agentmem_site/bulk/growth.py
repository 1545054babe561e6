"""Planner statistics for tables that grow from nothing.

If a table was analyzed while it was empty, PostgreSQL checks its references and looks up its keys
through whichever index comes first, until autovacuum analyzes it again (measured: 7 s for a batch
of sessions instead of 0.4 s).
"""

from django.db import connection, models

from agentmem_site.bulk import sql as statements


class TableGrowth:
    """Rows inserted by a load or a process, and the planner's last estimate, by table."""

    def __init__(self) -> None:
        self._inserted: dict[str, int] = {}
        self._estimated: dict[str, int] = {}

    def note(self, model: type[models.Model], inserted: int) -> None:
        table = model._meta.db_table
        self._inserted[table] = self._inserted.get(table, 0) + inserted

    def analyze_grown_tables(self) -> None:
        """Analyzes tables with ten times as many rows as the planner expects. Called after a
        commit."""
        for table, inserted in self._inserted.items():
            if inserted < 10 * self._estimated.get(table, 1):
                continue
            with connection.cursor() as cursor:
                cursor.execute(statements.estimated_rows(table))
                ((estimated,),) = cursor.fetchall()
                if inserted >= 10 * max(estimated, 1):
                    cursor.execute(statements.analyze(table))
                    estimated = inserted
            self._estimated[table] = estimated
