"""Pages and filters of lists, and what they cost."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from accounts.services.users import users
from accounts.tenancy import tenant
from tests.api.routes import ROUTES
from tests.makers import TESTER, make_agent, make_memory, make_message, make_session, make_user

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def seven_users(acme):
    """Created at three moments: every page boundary falls among rows of the same moment."""
    rows = [
        {"external_id": f"u{n}", "created_at": MOMENT + timedelta(seconds=n // 3)} for n in range(7)
    ]
    with tenant(acme):
        users.create_many(organization=acme, actor=TESTER, rows=rows)
        return [str(u.pk) for u in User.objects.for_organization(acme).newest_first()]


def walk(api, page, direction):
    while page[direction]:
        page = api.get(page[direction]).json()
        yield page


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 8])
def test_pages_go_forward_and_back_through_ties(api, seven_users, limit):
    first = api.get(f"users?limit={limit}").json()
    forth = [first, *walk(api, first, "next")]
    ids = [[row["id"] for row in page["results"]] for page in forth]
    assert [id for page in ids for id in page] == seven_users
    assert [len(page) for page in ids[:-1]] == [limit] * (len(ids) - 1)
    assert first["previous"] is None
    back = [forth[-1], *walk(api, forth[-1], "previous")]
    assert [[row["id"] for row in page["results"]] for page in back] == ids[::-1]
    assert back[-1]["previous"] is None
    if len(ids) > 1:
        assert api.get(back[-1]["next"]).json()["results"] == forth[1]["results"]


def test_a_row_added_meanwhile_moves_no_page(api, acme, seven_users):
    first = api.get("users?limit=3").json()
    newest = make_user(acme)
    second = api.get(first["next"]).json()
    assert [row["id"] for row in second["results"]] == seven_users[3:6]
    assert [r["id"] for r in api.get(second["previous"]).json()["results"]] == seven_users[:3]
    before = api.get(api.get(second["previous"]).json()["previous"]).json()
    assert [row["id"] for row in before["results"]] == [str(newest.pk)]


def test_pages_keep_their_filters(api, acme, seven_users):
    api.patch("users/u0", {"status": "inactive"})
    page = api.get("users?limit=2&status=active").json()
    shown = [page, *walk(api, page, "next")]
    assert sum(len(p["results"]) for p in shown) == 6


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("limit=0", "limit", "Ensure this value is greater than or equal to 1."),
        ("limit=201", "limit", "Ensure this value is less than or equal to 200."),
        ("limit=ten", "limit", "A valid integer is required."),
        ("limit=", "limit", "A valid integer is required."),
        ("cursor=abc", "cursor", "This cursor was not made by this server."),
        ("cursor=%00", "cursor", "Null characters are not allowed."),
        ("cursor=WzAsMSwyXQ", "cursor", "This cursor was not made by this server."),
        ("cursor=é", "cursor", "This cursor was not made by this server."),
        ("deleted=yes", "deleted", '"yes" is not a valid choice.'),
        ("limit=1&limit=2", "limit", "This parameter is repeated."),
        ("user=ann", "user", "There is no such parameter."),
        ("format=xml", "format", "There is no such parameter."),
        ("created_after=2026-01-01", "created_after", "Give the time zone"),
        ("created_after=0001-01-01T00:00:00%2B14:00", "created_after", ""),
        ("created_before=2200-01-01T00:00:00Z", "created_before", "The time is before 1970 or"),
        ("status=gone", "status", '"gone" is not a valid choice.'),
        ("email=%00", "email", "Null characters are not allowed."),
    ],
)
def test_a_bad_parameter_is_refused_by_name(api, query, field, message):
    response = api.get(f"users?{query}")
    assert response.status_code == 400
    (problem,) = response.json()["errors"]
    assert problem["field"] == field
    assert problem["message"].startswith(message)


def test_an_unknown_parameter_is_refused_on_every_route(api, cast):
    for route in ROUTES:
        if route.method == "get" and not route.kwargs:
            response = api.get(f"{route.path()}?usr_id=1")
            assert response.status_code == 400, route.id
            assert response.json()["errors"][0]["field"] == "usr_id"


def test_memories_are_filtered(api, acme):
    ann, barista = make_user(acme, external_id="ann"), make_agent(acme, external_id="barista")
    tea = make_memory(acme, content="Ann likes green tea.", user=ann, importance=0.1)
    make_memory(acme, content="Opens at eight.", agent=barista, importance=0.7, session_id="s:1")
    make_memory(acme, content="Coffee is at four.", memory_type="core", scope="agent")

    def contents(query):
        response = api.get(f"memories?{query}")
        assert response.status_code == 200, response.json()
        return [m["content"].split()[0] for m in response.json()["results"]]

    assert contents("") == ["Coffee", "Opens", "Ann"]
    assert contents("user_id=ann") == contents(f"user_id={ann.pk}") == ["Ann"]
    assert contents("agent_id=barista") == contents("session_id=s:1") == ["Opens"]
    assert contents("memory_type=core") == contents("scope=agent") == ["Coffee"]
    assert contents("level=strategic") == []
    # 0.1 is stored in 4 bytes, and compared as such.
    assert contents("importance_max=0.1") == ["Ann"]
    assert contents("importance_min=0.1&importance_max=0.5") == ["Coffee", "Ann"]
    assert contents("q=teas") == contents("q=likes -coffee") == ["Ann"]
    assert contents('q="at four"') == ["Coffee"]
    at = tea.created_at.isoformat()
    assert contents(f"created_before={at.replace('+', '%2B')}") == []
    assert contents(f"created_after={at}") == ["Coffee", "Opens", "Ann"]  # "+" not escaped
    assert contents("user_id=bob") == []


def test_sessions_are_filtered(api, acme):
    agent, user = make_agent(acme, external_id="barista"), make_user(acme, external_id="ann")
    make_session(acme, session_id="a", agent=agent, user=user)
    make_session(acme, session_id="t", team_id="night")
    make_session(acme, session_id="w", workflow_id="flow")

    def names(query):
        return [s["session_id"] for s in api.get(f"sessions?{query}").json()["results"]]

    assert names("") == ["w", "t", "a"]
    assert names("agent_id=barista") == names("user_id=ann") == ["a"]
    assert (names("team_id=night"), names("workflow_id=flow")) == (["t"], ["w"])
    updated = api.patch("sessions/a", {"name": "x"}).json()["updated_at"]
    assert names(f"updated_after={updated}") == ["a"]
    assert names(f"updated_before={updated}") == ["w", "t"]


def test_a_uuid_is_looked_up_as_an_id_first(api, acme):
    ours = make_agent(acme)
    namesake = make_agent(acme, external_id=str(ours.pk))
    assert api.get(f"agents/{ours.pk}").json()["id"] == str(ours.pk)
    created = api.post("sessions", {"agent_id": str(ours.pk)}).json()
    assert created["agent_id"] == str(ours.pk) != str(namesake.pk)
    other = make_agent(acme, external_id="0b0e7d1c-0000-4000-8000-000000000000")
    by_its_own = api.get("agents/0b0e7d1c-0000-4000-8000-000000000000")
    assert by_its_own.json()["id"] == str(other.pk)


def test_the_cost_of_a_list_does_not_grow_with_it(api, acme, cast):
    """Key, organization, begin, context, rows, end of the context, commit (savepoints here)."""
    api.get("me")  # notes the key's use
    extra = {"session-runs": 1, "memory-history": 1, "session-messages": 1}  # the parent
    for route in ROUTES:
        if route.action != "list":
            continue
        names = {
            "agent_id": cast["agent"].external_id,
            "session_id": cast["session"].session_id,
            "memory_id": cast["memory"].external_id,
        }
        path = route.path(**names)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert api.get(path).status_code == 200
        parents = 1 if route.basename in extra or route.template.startswith("agents/{") else 0
        statements = [q["sql"] for q in queries.captured_queries]
        assert len(statements) == 7 + parents, (route.id, statements)
        assert not [q for q in statements if '"embedding"' in q or '"document"' in q]
    for n in range(5):
        make_message(acme, session=cast["session"], run=cast["run"], text=str(n))
    with CaptureQueriesContext(connection) as queries:
        assert len(api.get("messages").json()["results"]) == 6
    assert len(queries) == 7


def test_a_page_is_one_range_of_the_index(api, acme, seven_users):
    second = api.get("users?limit=2").json()["next"]
    with CaptureQueriesContext(connection) as queries:
        api.get(second)
    (statement,) = [q["sql"] for q in queries if 'FROM "accounts_user"' in q["sql"]]
    with tenant(acme), connection.cursor() as cursor:
        # (For seven rows any plan is cheap: can the index give them in order?)
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
        cursor.execute(f"EXPLAIN {statement}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "accounts_user_created" in plan
    assert "ROW(created_at, id) < ROW(" in plan.split("Index Cond:")[1].splitlines()[0]
    assert "Sort" not in plan
    # Rows of the same moment have a fixed order with any plan.
    order = statement.split("ORDER BY")[1]
    assert order.split("LIMIT")[0].strip() == (
        '"accounts_user"."created_at" DESC, "accounts_user"."id" DESC'
    )
