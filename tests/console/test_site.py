"""Signing in, and the pages that belong to no model."""

from datetime import timedelta
from functools import partial

import pytest
from django.contrib.auth.hashers import MD5PasswordHasher
from django.db import OperationalError, connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.console import lists
from accounts.models import AuditEvent, Member
from accounts.services.organizations import members, organizations
from accounts.tenancy import platform, tenant
from agentmem_site.console import dashboard
from memories.embeddings import EncoderError, get_encoder
from memories.models import Agent, EmbedVisit, Memory
from memories.services import embed_progress
from memories.services.embed_worker import EmbedWorker
from sessions.models import Message, Run, Session
from tests.console.cases import CASES
from tests.console.conftest import PASSWORD, signed_in
from tests.console.sending import sent
from tests.console.test_pages import MODELS, names, url
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_embed_visit,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_tool,
    make_user,
)

pytestmark = pytest.mark.unguarded


def sign_in(email, password=PASSWORD):
    client = Client(headers={"User-Agent": "A browser"})
    page = client.post(reverse("admin:login"), {"username": email, "password": password})
    return client, page


def test_signing_in_is_audited(acme, alice):
    _, page = sign_in(alice.email)
    assert page.url == reverse("admin:index")
    _, page = sign_in(alice.email, "wrong")
    assert "correct email and password" in page.content.decode()
    with tenant(acme):
        events = AuditEvent.objects.for_organization(acme).filter(action="signed_in")
        recorded = events.order_by("created_at").values_list(
            "status", "actor_name", "resource_id", "ip", "user_agent"
        )
        assert list(recorded) == [
            ("success", alice.email, alice.pk, "127.0.0.1", "A browser"),
            ("failure", alice.email, alice.pk, "127.0.0.1", "A browser"),
        ]


def signs_in(acme):
    with tenant(acme):
        events = AuditEvent.objects.for_organization(acme).filter(action="signed_in")
        return list(events.order_by("created_at").values_list("status", "resource_id"))


def test_a_sign_in_with_an_address_in_another_case_is_audited(acme, alice):
    _, page = sign_in(f" {alice.email.upper()} ")
    assert page.url == reverse("admin:index")
    sign_in(alice.email.title(), "wrong")
    assert signs_in(acme) == [("success", alice.pk), ("failure", alice.pk)]


@pytest.mark.parametrize("field", ["username", "password", "organization"])
def test_a_nul_is_refused_like_any_wrong_value(field, alice):
    form = {"username": alice.email, "password": PASSWORD, field: "a\0b"}
    page = Client(headers={"User-Agent": "a\0b"}).post(reverse("admin:login"), form)
    assert page.status_code == 200
    assert "Null characters are not allowed." in page.content.decode()


def test_a_cookie_of_no_session_is_ignored(db):
    client = Client()
    client.cookies["sessionid"] = "\0abcdefghijklmn"
    assert client.get(reverse("admin:index")).url.startswith(reverse("admin:login"))


def test_a_member_of_two_organizations_signs_in_by_password_or_names_one(acme, globex, alice):
    by = {"organization": globex, "actor": TESTER}
    values = {"email": alice.email, "role": "viewer", "password": "another horse battery"}
    with tenant(globex):
        there = members.create(values=values, **by)
    client, page = sign_in(alice.email, "another horse battery")
    assert page.url == reverse("admin:index")
    assert client.session["_auth_user_id"] == str(there.pk)
    _, page = sign_in(alice.email, "wrong")
    assert signs_in(acme) == [("failure", alice.pk)]
    assert signs_in(globex) == [("success", there.pk), ("failure", there.pk)]
    assert 'name="organization"' not in page.content.decode()

    with tenant(globex):
        members.update(there, values={"password": PASSWORD}, **by)
    _, page = sign_in(alice.email)
    html = page.content.decode()
    assert "belong to several organizations: name one of them" in html
    assert 'name="organization"' in html
    form = {"username": alice.email, "password": PASSWORD}
    for slug, member in (("globex", there), ("acme", alice)):
        client = Client()
        page = client.post(reverse("admin:login"), {**form, "organization": slug})
        assert page.url == reverse("admin:index")
        assert client.session["_auth_user_id"] == str(member.pk)
    page = Client().post(reverse("admin:login"), {**form, "organization": "initech"})
    assert "correct email and password" in page.content.decode()
    assert 'name="organization"' in page.content.decode()


@pytest.mark.parametrize("rows", [0, 1])
def test_an_unknown_address_takes_as_long_as_a_known_one(rows, alice, monkeypatch):
    hashed = []
    encode = MD5PasswordHasher.encode
    monkeypatch.setattr(
        MD5PasswordHasher, "encode", lambda *args: hashed.append(1) or encode(*args)
    )
    sign_in(alice.email if rows else "nobody@example.org", "wrong")
    assert len(hashed) == 1


_FULL = """
CREATE TEMPORARY TABLE {0} (LIKE {0} INCLUDING DEFAULTS);
INSERT INTO {0} SELECT * FROM public.{0};
CREATE FUNCTION pg_temp.full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file "base/16384/16385": No space left on device'
        USING ERRCODE = '53100';
END $$;
CREATE TRIGGER full_disk BEFORE {1} ON pg_temp.{0} FOR EACH ROW EXECUTE FUNCTION pg_temp.full()
"""


@pytest.mark.parametrize(
    ("table", "verb"),
    [
        ("accounts_auditevent", "INSERT"),
        ("django_session", "INSERT"),
        ("accounts_member", "UPDATE"),
    ],
)
def test_signing_in_says_that_the_disk_is_full(table, verb, alice):
    """(A temporary table hides the table of the same name.)"""
    with connection.cursor() as cursor:
        cursor.execute(_FULL.format(table, verb))
    client, page = sign_in(alice.email)
    assert_unavailable(page, "disk is full", "60")
    assert "sessionid" not in client.cookies


@pytest.fixture
def read_only(console, alice):
    point = transaction.savepoint()
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION READ ONLY")
    yield
    transaction.savepoint_rollback(point)


def test_signing_in_says_that_the_database_is_read_only(read_only, alice):
    _, page = sign_in(alice.email)
    assert_unavailable(page, "read-only", "60")


def test_saving_says_that_the_database_is_read_only(read_only, console):
    page = console.post(url(Agent, "add"), CASES[Agent].form)
    assert_unavailable(page, "read-only", "60")


@pytest.mark.parametrize("page", ["index", "trash", "upload", "memories_agent_changelist"])
def test_every_page_says_that_the_database_is_away(page, console, monkeypatch):
    def fail(*args, **kwargs):
        raise OperationalError("server closed the connection at /var/run/secret")

    with connection.execute_wrapper(fail):
        answer = console.get(reverse(f"admin:{page}"))
    assert_unavailable(answer, "is not available right now", "1")
    assert "secret" not in answer.content.decode()


def assert_unavailable(page, words, wait):
    assert (page.status_code, page["Retry-After"]) == (503, wait)
    assert page["Content-Type"].startswith("text/html")
    assert words in page.content.decode()


def test_sign_ins_of_strangers_and_superusers_are_not_audited(root, acme):
    sign_in("nobody@example.org")
    sign_in(root.email)
    with platform():
        events = AuditEvent.objects.filter(organization=None, action="signed_in")
        recorded = events.order_by("created_at").values_list("status", "actor_name", "actor_id")
        assert list(recorded) == [
            ("failure", "nobody@example.org", None),
            ("success", root.email, root.pk),
        ]


@pytest.mark.parametrize("why", ["is_active", "is_staff", "deleted", "organization"])
def test_a_member_who_may_not_sign_in_is_signed_out(why, acme, alice):
    client = signed_in(alice)
    assert client.get(reverse("admin:index")).status_code == 200
    with platform():
        if why == "organization":
            rows = type(acme).objects.filter(pk=acme.pk)
            organizations.delete(rows, organization=acme, actor=TESTER)
        elif why == "deleted":
            rows = Member.objects.filter(pk=alice.pk)
            members.delete(rows, organization=acme, actor=TESTER)
        else:
            members.update(alice, organization=acme, actor=TESTER, values={why: False})
    assert client.get(reverse("admin:index")).url.startswith(reverse("admin:login"))
    _, page = sign_in(alice.email)
    assert page.status_code == 200


def test_changing_a_password_calls_the_service(acme, alice):
    client, _ = sign_in(alice.email)
    form = {
        "old_password": PASSWORD,
        "new_password1": "a longer pass phrase",
        "new_password2": "a longer pass phrase",
    }
    page = client.post(reverse("admin:password_change"), form)
    assert page.url == reverse("admin:password_change_done")
    assert client.get(reverse("admin:index")).status_code == 200  # still signed in
    alice.refresh_from_db()
    assert alice.check_password("a longer pass phrase")
    with tenant(acme):
        event = AuditEvent.objects.for_organization(acme).get(action="updated")
        assert event.changes == {"fields": {"password": None}}


def test_djangos_own_log_stays_empty(console, acme):
    from django.contrib.admin.models import LogEntry

    agent = make_agent(acme)
    console.post(url(Agent, "delete", agent.pk))
    assert not LogEntry.objects.exists()


def test_the_overview_has_the_organizations_numbers(console, acme, globex):
    make_session(acme, name="Late parcel", agent=make_agent(acme, name="Scout"))
    make_memory(acme, content="Likes tea")
    make_memory(globex, content="A secret of globex")
    html = console.get(reverse("admin:index")).content.decode()
    for text in ("Late parcel", "Scout", "Likes tea", "Pending <b>1</b>"):
        assert text in html
    assert "secret of globex" not in html


def in_state(organization, state, number):
    ids = [make_memory(organization).pk for _ in range(number)]
    vector = {"embedding": [1.0, *[0.0] * 383]} if state == "ready" else {"embedding": None}
    with tenant(organization):
        rows = Memory.objects.for_organization(organization).filter(pk__in=ids)
        rows.update(embedding_state=state, updated_at=timezone.now(), **vector)


def overview(client):
    return client.get(reverse("admin:index")).content.decode()


def test_the_overview_counts_all_memories_by_embedding(console, acme, globex, monkeypatch):
    monkeypatch.setattr(embed_progress, "MAX_OTHERS", 4)
    numbers = {"pending": 7, "failed": 1, "unreadable": 2, "ready": 5}
    for state, number in numbers.items():
        in_state(acme, state, number)
    in_state(globex, "pending", 3)
    html = overview(console)
    for text in ("Pending <b>7</b>", "Failed <b>1</b>", "Unreadable <b>2</b>", "Ready <b>4+</b>"):
        assert text in html
    monkeypatch.setattr(embed_progress, "MAX_PENDING", 6)
    assert "Pending <b>6+</b>" in overview(console)


def test_the_overview_says_whether_a_worker_is_running(console, acme, settings):
    settings.ENCODER = "static"
    in_state(acme, "ready", 1)
    assert "worker" not in overview(console)  # none is needed
    in_state(acme, "pending", 2)
    assert "No embedding worker has run yet." in overview(console)
    make_embed_visit(acme)
    html = overview(console)
    assert "A worker is embedding the pending memories." in html
    assert "am-note am-bad" not in html
    with tenant(acme):
        long_ago = timezone.now() - timedelta(minutes=3)
        EmbedVisit.objects.for_organization(acme).update(updated_at=long_ago)
    assert "No embedding worker has run since" in overview(console)


def test_the_state_of_a_worker_and_of_its_encoder_is_detected(console, acme, globex, settings):
    settings.ENCODER = "static"
    in_state(acme, "pending", 2)
    in_state(globex, "ready", 1)
    encoder = get_encoder()
    encode = encoder.encode
    try:
        encoder.encode = partial(_raise, EncoderError("It is away.", is_temporary=True))
        with pytest.raises(EncoderError):
            EmbedWorker().drain()
        html = overview(console)
        assert "The embedding worker cannot use its encoder: see the server&#x27;s log." in html
    finally:
        encoder.encode = encode
    worker = EmbedWorker()
    worker.drain()
    assert worker.work.embedded == 2
    in_state(acme, "pending", 1)
    assert "A worker is embedding the pending memories." in overview(console)
    with platform():
        assert [visit.organization_id for visit in EmbedVisit.objects.all()] == [acme.pk]


def _raise(error, texts):
    raise error


def test_expired_memories_are_not_counted(console, acme):
    make_memory(acme, expires_at=timezone.now() - timedelta(days=1))
    make_memory(acme)
    assert "<b>1</b><small>memories</small>" in overview(console)


def test_the_overview_says_when_it_stops_counting(console, acme, monkeypatch):
    monkeypatch.setattr(dashboard, "COUNT_BOUND", 2)
    for number in range(3):
        make_session(acme, name=f"Talk {number}")
    html = console.get(reverse("admin:index")).content.decode()
    assert "<span>Sessions of the last 14 days</span><span>2+</span>" in html


def test_the_sidebar_has_what_the_role_may_open(console, viewer, platform_console):
    html = console.get(reverse("admin:index")).content.decode()
    assert all(f"<span>{word}</span>" in html for word in ("API keys", "Audit log", "Trash"))
    html = viewer.get(reverse("admin:index")).content.decode()
    assert "<span>Members</span>" in html
    assert not any(f"<span>{word}</span>" in html for word in ("API keys", "Audit log"))
    html = platform_console.get(reverse("admin:index")).content.decode()
    assert "<span>Organizations</span>" in html


def test_the_trash_lists_and_restores_rows(console, foreign, acme):
    agent = make_agent(acme, name="Old bot")
    session = make_session(acme, agent=agent, name="A talk with it")
    console.post(url(Agent, "delete", agent.pk))
    html = console.get(reverse("admin:trash")).content.decode()
    assert "Old bot" in html
    assert "A talk with it" not in html  # deleted together with its agent
    assert "Old bot" not in foreign.get(reverse("admin:trash")).content.decode()

    page = console.post(url(Session, "restore", session.pk), {"trash": "1"}, follow=True)
    assert "The agent of this session is in the trash: restore that first." in page.content.decode()
    page = console.post(url(Agent, "restore", agent.pk), {"trash": "1"}, follow=True)
    assert page.redirect_chain[-1][0] == reverse("admin:trash")
    assert "Restored: 1 agent, 1 session." in page.content.decode()


def test_a_session_is_shown_as_a_conversation(console, acme):
    ada, nora = make_user(acme, name="Ada"), make_agent(acme, name="Nora")
    session = make_session(acme, user=ada, agent=nora)
    run = make_run(session, run_id="r-1", content="It is on its way.", model="some-model")
    make_message(acme, session=session, run=run, role="user", text="Where is it?", user=ada)
    turns = [
        {"role": "user", "content": "Said before", "from_history": True},
        {"role": "user", "content": [{"type": "text", "text": "And the bill?"}]},
    ]
    make_run(session, run_id="r-2", messages=turns, content="Paid.")
    make_message(acme, session=session, role="system", text="Handed over.")
    html = console.get(url(Session, "change", session.pk)).content.decode()
    conversation = html[html.index('id="conversation"') :]
    texts = ["r-1", "Ada", "Where is it?", "It is on its way.", "r-2", "And the bill?", "Paid."]
    places = [conversation.index(words) for words in [*texts, "Handed over."]]
    assert places == sorted(places)
    assert "Said before" not in conversation


def test_pictures_and_tool_calls_are_shown_as_text(console, acme):
    """In a conversation, in the list of messages, in a run's own messages."""
    session = make_session(acme)
    data = "iVBOR" + "Qk1aAB3" * 12_000
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [{"type": "text", "text": "What is this?"}, picture]
    call = {"function": {"name": "look", "arguments": '{"at": "it"}'}}
    make_message(acme, session=session, role="user", text="", content=content)
    make_message(acme, session=session, role="assistant", text="", tool_calls=[call])
    seen = {"screen": {"data": [f"data:image/png;base64,{data}"]}}
    make_message(acme, session=session, role="tool", text="Seen.", tool_returns=seen)
    turns = [{"role": "user", "content": content}, {"role": "assistant", "tool_calls": [call]}]
    run = make_run(make_session(acme), messages=turns)
    for page in (url(Session, "change", session.pk), url(Session, "change", run.session_id)):
        html = console.get(page).content.decode()
        conversation = html[html.index('id="conversation"') :]
        assert "What is this?" in conversation
        assert "[image, 63 KB]" in conversation
        assert "[calls look(at: it)]" in conversation
        assert data[:200] not in conversation
        assert "image_url" not in conversation
    rows = console.get(url(Message, "changelist")).content.decode()
    assert "What is this? [image, 63 KB]" in rows
    assert "[calls look(at: it)]" in rows
    assert data[:200] not in rows


def test_a_memory_shows_its_versions(console, acme, alice):
    memory = make_memory(acme, content="Likes tea")
    data = sent(console.get(url(Memory, "change", memory.pk))) | {"content": "Likes coffee"}
    console.post(url(Memory, "change", memory.pk), data)
    html = console.get(url(Memory, "change", memory.pk)).content.decode()
    versions = html[html.index('id="versions"') :]
    changed, first = "Likes <del>tea</del><ins>coffee</ins>", "Likes tea"
    assert versions.index(changed) < versions.index(first)
    assert f"by {alice.name}" in versions


def test_counting_stops_at_the_limit(console, acme, monkeypatch):
    monkeypatch.setattr(lists, "COUNT_BOUND", 2)
    for _ in range(4):
        make_user(acme)
    html = console.get("/admin/accounts/user/").content.decode()
    assert "more than 2" in html


def test_a_range_of_days_includes_its_last_day(console, acme):
    memory = make_memory(acme)
    today = timezone.localdate()
    for first, last, is_there in (
        (today, today, True),
        (today - timedelta(days=3), today - timedelta(days=1), False),
    ):
        days = {"created_at_from": f"{first:%Y-%m-%d}", "created_at_to": f"{last:%Y-%m-%d}"}
        page = console.get(url(Memory, "changelist", **days))
        assert (str(memory.pk) in page.content.decode()) is is_there


def test_no_page_reads_a_vector(console, acme, django_assert_max_num_queries):
    memory = make_memory(acme)
    with django_assert_max_num_queries(100) as queries:
        for page in (url(Memory, "changelist"), url(Memory, "change", memory.pk), "/admin/"):
            console.get(page)
    columns = " ".join(query["sql"] for query in queries.captured_queries)
    assert "memories_memory" in columns
    assert '"embedding",' not in columns
    assert '"document"' not in columns


def test_pages_are_found_by_name(console, viewer):
    search = reverse("admin:search", query={"s": "mem", "extended": "1"})
    html = console.get(search).content.decode()
    assert all(word in html for word in ("Memories", "Members"))
    assert console.get(reverse("admin:search")).status_code == 200
    assert (
        "API keys" not in viewer.get(reverse("admin:search", query={"s": "api"})).content.decode()
    )


# Statements per page, including those for session and member. They do not grow with the rows.
_LISTS = 9
_PAGES = {Session: 15, Agent: 14, Memory: 12, Run: 11, Message: 13}


def _fill(organization):
    user, agent = make_user(organization), make_agent(organization)
    block, tool = make_block(organization, user=user), make_tool(organization)
    session = make_session(organization, user=user, agent=agent)
    run = make_run(session)
    message = make_message(organization, session=session, run=run, agent=agent, user=user)
    memory = make_memory(organization, user=user, agent=agent)
    return {type(row): row for row in (user, agent, block, tool, session, run, message, memory)}


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_the_statements_of_a_list_do_not_grow_with_its_rows(
    model, console, acme, django_assert_max_num_queries
):
    for _ in range(6):
        _fill(acme)
    console.get(url(model, "changelist"))
    with django_assert_max_num_queries(_LISTS):
        console.get(url(model, "changelist"))


@pytest.mark.parametrize("model", _PAGES, ids=lambda model: model._meta.model_name)
def test_a_page_runs_a_fixed_number_of_statements(model, console, acme, django_assert_num_queries):
    rows = _fill(acme)
    for _ in range(4):
        make_message(acme, session=rows[Session], agent=rows[Agent], user=rows[Session].user)
    page = url(model, "change", rows[model].pk)
    console.get(page)
    with django_assert_num_queries(_PAGES[model]):
        console.get(page)


def test_the_overview_runs_a_fixed_number_of_statements(
    console, platform_console, acme, django_assert_num_queries
):
    _fill(acme)
    for client, number in ((console, 21), (platform_console, 11)):
        client.get(reverse("admin:index"))
        with django_assert_num_queries(number):
            client.get(reverse("admin:index"))
