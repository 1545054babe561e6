"""At least one row in each walled table."""

from django.db import connection

from accounts.models import Organization
from accounts.tenancy import platform, tenant
from memories.services.agents import attach_block, attach_tool
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_cached_vector,
    make_embed_visit,
    make_key,
    make_load_part,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_tool,
    make_user,
)
from tests.schema import catalog


def populate(*organizations: Organization) -> None:
    """Fails for a model without rows: add it here, so that its wall is tested."""
    for organization in organizations:
        user, agent = make_user(organization), make_agent(organization)
        block, tool = make_block(organization, user=user), make_tool(organization)
        make_memory(organization, user=user, agent=agent)
        make_cached_vector(organization)
        make_embed_visit(organization)
        session = make_session(organization, user=user, agent=agent)
        run = make_run(session)
        make_message(organization, session=session, run=run, user=user, agent=agent)
        make_key(organization)
        make_load_part(organization)
        with tenant(organization):
            attach_block(agent, block, organization=organization, actor=TESTER)
            attach_tool(agent, tool, organization=organization, actor=TESTER)
    with platform(), connection.cursor() as cursor:
        for table in catalog.walled():
            cursor.execute(f'SELECT DISTINCT organization_id FROM "{table}"')
            there = {organization_id for (organization_id,) in cursor.fetchall()}
            missing = [o.slug for o in organizations if o.pk not in there]
            assert not missing, f"{table} has no row of {missing}: make one in tests/schema/rows.py"
