"""Test databases are created by the owner and used by the application, as in production."""

from typing import Any

from django.db.backends.postgresql.creation import DatabaseCreation as PostgresCreation

from agentmem_site.db.roles import APPLICATION, as_owner


class DatabaseCreation(PostgresCreation):
    def create_test_db(self, *args: Any, **kwargs: Any) -> str:
        with as_owner(self.connection):
            name = super().create_test_db(*args, **kwargs)
            with self.connection.cursor() as cursor:
                # Only for the clean-up after transactional tests.
                cursor.execute(f"GRANT TRUNCATE ON ALL TABLES IN SCHEMA public TO {APPLICATION}")
        return name

    def _clone_test_db(self, *args: Any, **kwargs: Any) -> None:
        with as_owner(self.connection):
            super()._clone_test_db(*args, **kwargs)  # type: ignore[misc]

    def destroy_test_db(self, *args: Any, **kwargs: Any) -> None:
        with as_owner(self.connection):
            super().destroy_test_db(*args, **kwargs)
