"""What the planner knows of tables that grow from nothing.

Without new figures, a table that was looked at while it was empty has its references checked and
its keys looked up through whichever index comes first, until autovacuum comes by (seen: 7 s for a
batch of sessions instead of 0.4 s).
"""

from django.db import connection, models

from agentmem_site.bulk import sql as statements


class Growth:
    """Rows inserted by a load or a process, and those that the planner last knew of, by table."""

    def __init__(self) -> None:
        self._inserted: dict[str, int] = {}
        self._planned_for: dict[str, int] = {}

    def note(self, model: type[models.Model], inserted: int) -> None:
        table = model._meta.db_table
        self._inserted[table] = self._inserted.get(table, 0) + inserted

    def tell_planner(self) -> None:
        """After a commit: new figures for tables ten times what the planner takes them for."""
        for table, inserted in self._inserted.items():
            if inserted < 10 * self._planned_for.get(table, 1):
                continue
            with connection.cursor() as cursor:
                cursor.execute(statements.rows_known(table))
                ((known,),) = cursor.fetchall()
                if inserted >= 10 * max(known, 1):
                    cursor.execute(statements.analyze(table))
                    known = inserted
            self._planned_for[table] = known
