"""Changes of a session or its runs wait for a load of the same, and never deadlock with it."""

import threading

import pytest
from django.db import connection

from accounts.tenancy import tenant
from sessions.models import Run, Session
from sessions.services.conversations import runs, sessions
from tests.makers import TESTER, make_organization, make_run, make_session

WAITING = """
SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))
"""


@pytest.mark.parametrize(
    "change",
    [
        lambda run, by: runs.update(run, values={"content": "x"}, **by),
        lambda run, by: sessions.delete(Session.objects.filter(pk=run.session_id), **by),
        lambda run, by: sessions.purge(Session.objects.filter(pk=run.session_id), **by),
    ],
    ids=["run changed", "session deleted", "session purged"],
)
@pytest.mark.django_db(transaction=True)
@pytest.mark.unguarded  # of a lock
def test_a_change_that_waits_for_a_session_locks_none_of_its_runs(change):
    """As a load does. Otherwise they could deadlock."""
    acme = make_organization("acme")
    run = make_run(make_session(acme))

    def other():
        with tenant(acme):
            change(run, {"organization": acme, "actor": TESTER})
        connection.close()

    waiting = threading.Thread(target=other)
    with tenant(acme):
        Session.objects.select_for_update().get(pk=run.session_id)
        waiting.start()
        with connection.cursor() as cursor:
            while cursor.execute(WAITING).fetchone() == (0,):
                pass
        assert Run.objects.select_for_update(nowait=True).get(pk=run.pk) == run
    waiting.join()
