"""Django's PostgreSQL backend, extended for tenant tables and for the embedded server."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.conf import settings
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresWrapper
from django.db.backends.postgresql.client import DatabaseClient as PostgresClient
from django.db.backends.postgresql.features import DatabaseFeatures as PostgresFeatures
from psycopg.conninfo import make_conninfo

from agentmem_site.db.creation import DatabaseCreation
from agentmem_site.db.fields import tenant_key
from agentmem_site.db.limits import wait_limited
from agentmem_site.db.refusals import cannot_connect
from agentmem_site.db.schema import DatabaseSchemaEditor
from agentmem_site.db.setup import prepare_embedded
from agentmem_site.db.urls import connection_parameters


class DatabaseFeatures(PostgresFeatures):
    def allows_group_by_selected_pks_on_model(self, model: Any) -> bool:
        # The primary key of a tenant table is (id, organization_id). PostgreSQL cannot infer the
        # other columns from id alone, so GROUP BY must name them.
        return tenant_key(model) is None and super().allows_group_by_selected_pks_on_model(model)


class DatabaseClient(PostgresClient):
    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[list[str], dict[str, str] | None]:
        """psql with all options of the connection. Django's own passes on only those it knows."""
        conninfo = connection_parameters(settings_dict)
        password = conninfo.pop("password", None)
        env = {"PGPASSWORD": str(password)} if password else None
        return [cls.executable_name, make_conninfo(**conninfo), *parameters], env


class DatabaseWrapper(PostgresWrapper):
    SchemaEditorClass = DatabaseSchemaEditor
    features_class = DatabaseFeatures
    creation_class = DatabaseCreation
    client_class = DatabaseClient

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection. Starts the embedded server if it is not running.

        Raises: psycopg.OperationalError; CannotConnect if the reason is known.
        """
        server = settings.EMBEDDED_SERVER
        if server is not None:
            server.bound_log()
        try:
            connection = super().get_new_connection(conn_params)
        except self.Database.OperationalError as error:
            if server is None or conn_params.get("host") != server.connection()["HOST"]:
                raise cannot_connect(error, self.settings_dict) from error
            server.start(prepare=prepare_embedded(server.connection))
            try:
                connection = super().get_new_connection(conn_params)
            except self.Database.OperationalError as again:
                raise cannot_connect(again, self.settings_dict) from again
        connection.wait = partial(wait_limited, connection)
        return connection
