"""The console's pages accept the parameters that they declare, and no others."""

import re
from collections.abc import Iterator
from html import unescape
from itertools import cycle
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib import admin
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.db import connection
from django.http import QueryDict
from django.test import Client, RequestFactory
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from accounts.console.parameters import refusals
from accounts.models import ApiKey, AuditEvent, Member, Organization, User
from accounts.tenancy import platform, tenant
from memories.models import Agent, Block, Memory
from sessions.models import Run, Session
from tests.console.cases import CANARY, CASES
from tests.console.conftest import signed_in
from tests.console.test_pages import MODELS, names, url
from tests.makers import (
    make_agent,
    make_block,
    make_member,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_tool,
    make_user,
)

pytestmark = pytest.mark.unguarded

ODD = ("(((", "\0", "x", "0")
LINK = re.compile(r'href="(/admin/[^"?#]*\?[^"#]*)"')


@pytest.fixture
def owner(acme: Organization) -> Client:
    return signed_in(make_member(acme, "olga", role="owner"))


def asked_by(member: Member, address: str = "/admin/", **query: str) -> Any:
    request = RequestFactory().get(address, query)
    request.user = member
    return request


def paths(model: Any, levels: int, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each column of the model and, up to `levels` relations away, of others: (path, column)."""
    for field in model._meta.get_fields(include_hidden=True):
        name = f"{prefix}{field.name}"
        if getattr(field, "column", None) is not None:
            yield name, field
        if field.is_relation and field.related_model and levels:
            yield from paths(field.related_model, levels - 1, f"{name}__")


def own_columns(model: Any) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields]


class Statements:
    """The texts of statements, without their values."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        if "SAVEPOINT" not in str(sql):  # (each has a name of its own)
            self.statements.append(str(sql))
        return execute(sql, params, many, context)


def statements_of(client: Client, address: str) -> tuple[int, list[str]]:
    noted = Statements()
    with connection.execute_wrapper(noted):
        status = client.get(address).status_code
    return status, noted.statements


# -- what is not declared -------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=names)
@pytest.mark.parametrize("role", ["viewer", "owner"])
def test_undeclared_columns_and_lookups_are_refused(model, role, acme):
    page = admin.site._registry[model]
    request = asked_by(make_member(acme, "pat", role=role))
    declared = page.list_parameters(request)
    filtered = {f[0] for f in page.get_list_filter(request) if isinstance(f, tuple)}
    lookups: dict[str, tuple[str, str]] = {}  # by the parameter's name: path and lookup
    for path, column in paths(model, levels=2):
        lookups[path] = (path, "")
        lookups |= {f"{path}__{lookup}": (path, lookup) for lookup in column.get_lookups()}
    assert len(lookups) > 500
    for value in ODD:
        query = QueryDict(mutable=True)
        query.update(dict.fromkeys(lookups, value))
        for name in query.keys() - refusals(query, declared).keys():
            # A declared filter, and a value that it offers or that its column can have.
            path, lookup = lookups[name]
            assert path.removesuffix("__id") in filtered
            assert lookup in ("", "exact", "isnull")
            assert value != "\0"
    for path, _ in paths(model, levels=1):
        assert not page.lookup_allowed(f"{path}__regex", "(((", request)


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_an_undeclared_parameter_is_400_before_any_query(model, owner, viewer, acme):
    CASES[model].make(acme)
    lookups = cycle(["", "startswith", "regex", "gt", "isnull", "in", "unaccent"])
    values = cycle(ODD)
    for client in (owner, viewer):
        nothing = statements_of(client, f"{url(model, 'changelist')}?nobody_declared=1")
        assert nothing[0] == 400
        listed = statements_of(client, url(model, "changelist"))
        assert listed[0] in (200, 403)
        member = Member.objects.get(pk=client.session["_auth_user_id"])
        declared = admin.site._registry[model].list_parameters(asked_by(member))
        tried = 0
        for column in own_columns(model):
            lookup = next(lookups)
            query = urlencode({f"{column}__{lookup}" if lookup else column: next(values)})
            if refusals(QueryDict(query), declared):
                tried += 1
                answer = statements_of(client, f"{url(model, 'changelist')}?{query}")
                assert answer == nothing, query
        assert tried > len(own_columns(model)) / 2


SAMPLES: list[tuple[Any, str]] = [
    (Member, "password__startswith=pbkdf2"),
    (Member, "email=alice@acme.example&password__regex=^pbkdf2"),
    (Member, "password=x"),
    (Member, "name__regex=((("),
    (Member, "name=%00"),
    (Member, "name__unaccent=x"),
    (User, "name__unaccent=x"),
    (ApiKey, "hash__gt=0"),
    (ApiKey, "hash__startswith=a"),
    (Memory, "content__regex=((((a*)*)*)*)*b"),
    (Memory, "user__memories__content__regex=x"),
    (Memory, "organization__members__password__startswith=p"),
    (Memory, "embedding__isnull=True"),
    (Memory, "_facets=True"),
    (Memory, "_to_field=external_id"),
    (Memory, "q=%00"),
    (Memory, f"q={'x' * 1001}"),
    (Memory, "memory_type__exact=((("),
    (Memory, "memory_type__exact=%00"),
    (Memory, "memory_type__isnull=True"),
    (Memory, "agent__id__exact=x"),
    (Memory, "agent__id__exact=%00"),
    (Memory, "agent__id__exact=" + "9" * 60),
    (Memory, "agent__isnull=maybe"),
    (Memory, "session_id=%00"),
    (Memory, f"session_id={'x' * 1001}"),
    (Memory, "created_at_from=((("),
    (Memory, "created_at_from=2026-02-30"),
    (Memory, "created_at_to=9999-12-31"),
    (Memory, "created_at_to=%00"),
    (Memory, "is_deleted=(("),
    (Memory, "is_deleted=%00"),
    (Memory, "o=((("),
    (Memory, "o=1"),  # a column without an index
    (Memory, "o=99"),
    (Memory, "o=%00"),
    (Memory, "p=((("),
    (Memory, "p=0"),
    (Memory, "p=-1"),
    (Memory, "p=" + "9" * 30),
    (Memory, "p=%C2%B2"),
    (Memory, "e=((("),
    (Memory, "all=((("),
    (Memory, "_popup=((("),
    (Block, "read_only__exact=((("),
    (Block, "read_only__exact=" + "9" * 30),
    (AuditEvent, "action=%00"),
    (AuditEvent, "is_deleted=1"),
]


@pytest.mark.parametrize(("model", "query"), SAMPLES, ids=[q[:40] for _, q in SAMPLES])
def test_a_list_names_the_refused_parameter(model, query, console, acme):
    page = console.get(f"{url(model, 'changelist')}?{query}")
    assert page.status_code == 400
    assert page.templates[0].name == "console/refused.html"
    name = next(reversed(QueryDict(query)))
    html = page.content.decode()
    assert f"<b>{name}</b>" in html


def test_the_refusal_links_to_the_list_without_the_parameter(console, acme):
    query = urlencode({"q": "tea", "content__regex": "(((", "name__<b>": "x", "\0": "x"})
    html = console.get(f"{url(Memory, 'changelist')}?{query}").content.decode()
    assert "<b>content__regex</b>: This page has no such parameter." in html
    assert "<b>name__&lt;b&gt;</b>" in html
    assert "\0" not in html
    assert f'href="{url(Memory, "changelist")}?q=tea"' in html
    assert "<span>Memories</span>" in html  # it is a page of the console


def test_more_parameters_than_a_request_may_have_are_refused(console, acme):
    query = "&".join(f"a{n}=1" for n in range(1_200))
    for address in (url(Memory, "changelist"), reverse("admin:trash"), reverse("admin:login")):
        page = (
            Client().get(f"{address}?{query}")
            if "login" in address
            else console.get(f"{address}?{query}")
        )
        assert page.status_code == 400
        assert "There are too many parameters." in page.content.decode()


def test_a_page_beyond_the_last_one_is_refused(console, acme):
    for _ in range(51):
        make_user(acme)
    assert console.get(url(User, "changelist", p=2)).status_code == 200
    page = console.get(url(User, "changelist", p=3, q=""))
    assert page.status_code == 400
    assert "<b>p</b>: There is no such page." in page.content.decode()


def test_a_list_that_bypasses_the_site_checks_its_filters(alice):
    """A list that is created without a request to the site checks its filters, too."""
    page = admin.site._registry[Member]
    request = asked_by(alice, password__startswith="pbkdf2")
    with tenant(alice.organization), pytest.raises(DisallowedModelAdminLookup):
        page.get_changelist_instance(request)
    assert not page.lookup_allowed("role__exact", "owner")  # without a request


def test_an_anonymous_request_is_sent_to_the_sign_in_page_first(acme):
    address = f"{url(Member, 'changelist')}?password__startswith=p"
    page = Client().get(address)
    assert page.status_code == 302
    assert page.url == f"{reverse('admin:login')}?{urlencode({'next': address}, safe='/')}"
    assert Client().get(page.url).status_code == 200


# -- what is declared -----------------------------------------------------------------------------


def offered(model: Any, member: Member, organization: Organization) -> Iterator[dict[str, str]]:
    """A query for each choice of each filter of the list."""
    request = asked_by(member)
    for declared in admin.site._registry[model].get_list_filter(request):
        if not isinstance(declared, tuple):
            yield from ({declared.parameter_name: v} for v in ("", "1"))
            continue
        name, kind = declared
        column = model._meta.get_field(name)
        if kind.__name__ == "DayRangeFilter":
            today = f"{timezone.localdate():%Y-%m-%d}"
            yield {f"{name}_from": today, f"{name}_to": today}
            yield {f"{name}_from": "0001-01-01", f"{name}_to": "9999-12-30"}
            yield {f"{name}_from": "", f"{name}_to": ""}
        elif kind.__name__ == "ExactTextFilter":
            yield from ({name: v} for v in ("", "((( % _ \\", "ein Wort"))
        elif column.is_relation:
            yield from ({f"{name}__id__exact": v} for v in ("", str(organization.pk)))
            if column.null:
                yield {f"{name}__isnull": "True"}
        elif column.choices:
            yield from ({f"{name}__exact": v} for v, _ in [("", ""), *column.flatchoices])
        else:
            yield from ({f"{name}__exact": v} for v in ("", "1", "0"))


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_each_choice_of_each_filter_is_accepted(
    model, console, platform_console, root, alice, acme
):
    CASES[model].make(acme)
    for client, member in ((console, alice), (platform_console, root)):
        queries = list(offered(model, member, acme))
        assert queries
        # (A superuser has one more filter, the first one.)
        for query in queries if client is console else queries[:2]:
            page = client.get(url(model, "changelist", **query))
            assert page.status_code == 200, query
        # What a browser sends from the form of the filters: all of them, one filled in.
        emptied = {name: "" for query in queries for name in query if "isnull" not in name}
        page = client.get(url(model, "changelist", **emptied, q="", o="", p="1", e="1"))
        assert page.status_code == 200
        assert page.context["cl"].result_count
        assert not page.context["cl"].has_active_filters
        page = client.get(url(model, "changelist", **{**emptied, **queries[-1]}))
        assert page.status_code == 200


def test_filters_filter(console, acme):
    fixed, free = make_block(acme, read_only=True), make_block(acme, read_only=False)
    for value, seen in (("1", {fixed.pk}), ("0", {free.pk}), ("", {fixed.pk, free.pk})):
        page = console.get(url(Block, "changelist", read_only__exact=value))
        assert {row.pk for row in page.context["cl"].result_list} == seen


def test_each_link_of_a_page_is_accepted(console, platform_console, acme):
    user, agent = make_user(acme), make_agent(acme)
    block, tool = make_block(acme, user=user), make_tool(acme)
    session = make_session(acme, user=user, agent=agent)
    for number in range(6):
        run = make_run(session, run_id=f"r-{number}")
        make_message(acme, session=session, run=run, agent=agent, user=user)
        make_memory(acme, user=user, agent=agent, session_id="s-1")
        make_session(acme, user=user, agent=agent)
        make_block(acme, user=user)
    memory = make_memory(acme, session_id="s-1")
    rows = [user, agent, block, tool, session, run, memory]
    deleted = make_agent(acme)
    console.post(url(Agent, "delete", deleted.pk))
    lists = [url(model, "changelist") for model in MODELS]
    filters = {"_changelist_filters": "q=a&p=1"}
    start = [reverse("admin:index"), reverse("admin:trash"), *lists]
    start += [f"{address}?q=a&p=1" for address in lists]
    start += [url(type(row), "change", row.pk) for row in rows]
    start += [url(type(row), "change", row.pk, **filters) for row in rows]
    for client, addresses in ((console, start), (platform_console, start[:2] + lists)):
        links = set()
        for address in addresses:
            page = client.get(address)
            assert page.status_code == 200, address
            links |= {unescape(link) for link in LINK.findall(page.content.decode())}
        assert len(links) >= (30 if client is console else 5)
        for address in sorted(links):
            assert client.get(address).status_code in (200, 302), (
                f"a page links to {address}, which is refused: does the list have that filter?"
            )


def test_a_superuser_can_filter_by_organization(platform_console, acme, globex):
    mine, theirs = make_user(acme), make_user(globex)
    page = platform_console.get(url(User, "changelist", organization__id__exact=acme.pk))
    assert {row.pk for row in page.context["cl"].result_list} == {mine.pk}
    assert theirs.pk not in {row.pk for row in page.context["cl"].result_list}


def test_members_have_no_filter_by_organization(console, acme):
    page = console.get(url(User, "changelist", organization__id__exact=acme.pk))
    assert page.status_code == 400


# -- pages of one row -----------------------------------------------------------------------------

VIEWS = ("change", "delete", "history", "restore", "purge")


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_a_page_accepts_only_what_it_declares(model, console, acme):
    row = CASES[model].make(acme)
    bad = [
        "password__startswith=p",
        "_to_field=name",
        "_to_field=password",
        "_changelist_filters=password__regex%3Dx",
        "_changelist_filters=q%3D%2500",
        "_changelist_filters=%00",
        "_popup=(((",
        "page=(((",
        "p=(((",
    ]
    for view in VIEWS:
        for query in bad:
            assert console.get(f"{url(model, view, row.pk)}?{query}").status_code == 400
        assert console.post(f"{url(model, view, row.pk)}?{bad[0]}").status_code == 400
        good = url(model, view, row.pk, _changelist_filters="q=x&p=1", _popup="1", _to_field="id")
        assert console.get(good).status_code in (200, 403)
    with platform():
        assert not getattr(model.objects.get(pk=row.pk), "is_deleted", False)
    assert console.get(url(model, "history", row.pk, p=2)).status_code == 200


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_a_post_identifies_a_row_by_its_key(model, console, acme):
    row = CASES[model].make(acme)
    for view in ("change", "delete"):
        sent = console.post(url(model, view, row.pk), {"_to_field": "name", "_popup": "1"})
        assert sent.status_code == 400
    with platform():
        assert not getattr(model.objects.get(pk=row.pk), "is_deleted", False)


def test_an_invalid_key_is_not_found(console, acme):
    for key in ("(((", "%00", "x", "9" * 60):
        for view in VIEWS:
            address = f"/admin/memories/memory/{key}/{view}/"
            assert console.get(address).status_code == 302


def test_a_conversation_is_paginated(console, acme):
    session = make_session(acme)
    for page, status in (("1", 200), ("9", 200), ("x", 400), ("²", 400), ("0", 400)):
        assert console.get(url(Session, "change", session.pk, page=page)).status_code == status
    run = make_run(session)
    assert console.get(url(Run, "change", run.pk, page="1")).status_code == 400


def test_the_agents_of_a_block_are_paginated(console, acme):
    block = make_block(acme)
    for page, status in (("1", 200), ("9", 200), ("x", 400), ("²", 400)):
        address = url(Block, "change", block.pk, **{"agent_links-page": page})
        assert console.get(address).status_code == status


def test_parameters_prefill_the_form(console, platform_console, acme):
    agent = make_agent(acme)
    values = {"content": "Tea", "memory_type": "core", "importance": "0.7", "agent": str(agent.pk)}
    page = console.get(url(Memory, "add", expires_at="2030-01-02 03:04", **values))
    assert page.status_code == 200
    html = page.content.decode()
    assert all(word in html for word in ("Tea", "2030-01-02", "03:04", str(agent)))
    assert page.context["adminform"].form["memory_type"].value() == "core"
    assert platform_console.get(url(Memory, "add", content="Tea")).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "agent=(((",
        "agent=%00",
        "agent__name=x",
        "agent_id=x",
        "organization=x",
        "id=x",
        "created_at=2026-01-01",
        "memory_type=(((",
        "importance=x",
        "expires_at=(((",
        "expires_at=9999999-01-01",
        "content=%00",
        "embedding=x",
        "metadata={}",
        "is_deleted=1",
        "_to_field=external_id",
        "_changelist_filters=content__regex%3Dx",
    ],
)
def test_only_columns_of_the_form_can_be_prefilled(query, console, acme):
    assert console.get(f"{url(Memory, 'add')}?{query}").status_code == 400


def test_no_secret_can_be_prefilled(console, acme):
    for name in ("password", "password1", "is_superuser", "last_login"):
        assert console.get(url(Member, "add", **{name: "1"})).status_code == 400
    for name in ("hash", "prefix", "scopes", "template"):
        assert console.get(url(ApiKey, "add", **{name: "1"})).status_code == 400


# -- selected rows in a list ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        {"_selected_action": "((("},
        {"_selected_action": "\0"},
        {"_selected_action": ""},
        {"_selected_action": "9" * 60},
        {"select_across": "1"},
        {"select_across": "((("},
        {"action": "\0"},
        {"_to_field": "name"},
    ],
    ids=str,
)
def test_an_invalid_selection_is_refused(sent, console, acme):
    memory = make_memory(acme)
    picked = {"action": "move_to_trash", "_selected_action": [str(memory.pk)], "confirmed": "yes"}
    for more in ({}, {"index": "0"}):
        page = console.post(url(Memory, "changelist"), {**picked, **more, **sent})
        assert page.status_code == 400
    with tenant(acme):
        assert not Memory.objects.for_organization(acme).get().is_deleted


def test_actions_apply_to_the_selected_rows(console, acme):
    kept, deleted = make_memory(acme), make_memory(acme)
    address = url(Memory, "changelist", o="", p="1")
    picked = {"_selected_action": [str(deleted.pk)], "select_across": "0", "confirmed": "yes"}
    for action in ("", "purge_selected", "delete_selected", "((("):
        for index in ("0", "x", "-9", "9" * 30):
            page = console.post(address, {**picked, "action": action, "index": index})
            assert page.status_code == 302
    with tenant(acme):
        assert Memory.objects.for_organization(acme).live().count() == 2
    page = console.post(address, {**picked, "action": "move_to_trash", "index": "0"})
    assert page.status_code == 302
    with tenant(acme):
        assert [row.pk for row in Memory.objects.for_organization(acme).live()] == [kept.pk]


# -- pages of the site ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["index", "trash", "upload", "search", "password_change"])
def test_pages_of_the_site_accept_only_what_they_declare(page, console, acme):
    address = reverse(f"admin:{page}")
    assert console.get(address).status_code == 200
    refused = console.get(address, {"password__startswith": "p"})
    assert refused.status_code == 400
    assert f'href="{address}"' in refused.content.decode()
    assert console.get(reverse("admin:app_list", args=["memories"]), {"x": "1"}).status_code == 400


def test_sign_in_accepts_only_next(acme):
    address = reverse("admin:login")
    assert Client().get(address, {"next": "/admin/memories/memory/?q=x"}).status_code == 200
    for query in ({"x": "1"}, {"next": "\0"}, {"username": "alice"}):
        for send in (Client().get, Client().post):
            page = send(f"{address}?{urlencode(query)}")
            assert page.status_code == 400
            assert page.templates[0].name == "console/refused_plain.html"


def test_no_parameter_redirects_to_another_site(console, acme):
    with pytest.raises(NoReverseMatch):
        reverse("admin:view_on_site", args=[1, acme.pk])
    assert console.get(f"/admin/r/1/{acme.pk}/").status_code == 404


def completed(client: Client, **query: str) -> int:
    return client.get(reverse("admin:autocomplete"), query).status_code


def test_autocomplete_serves_only_references_of_pages(console, acme):
    source = {"app_label": "agent_sessions", "model_name": "session", "field_name": "agent"}
    assert completed(console, **source) == 200
    assert completed(console, **source, term="a", page="1") == 200
    link = {"app_label": "memories", "model_name": "agentblock", "field_name": "block"}
    assert completed(console, **link) == 200  # of a row within a page
    organization = {"app_label": "memories", "model_name": "memory", "field_name": "organization"}
    assert completed(console, **organization) == 200
    for over, status in (
        ({"term": "\0"}, 400),
        ({"term": "x" * 1001}, 400),
        ({"page": "x"}, 400),
        ({"page": "0"}, 400),
        ({"page": "9"}, 404),
        ({"organization": "((("}, 400),
        ({"name__regex": "((("}, 400),
        ({"to_field": "name"}, 400),
        ({"field_name": "external_id"}, 403),
        ({"field_name": "runs"}, 403),  # what refers to it
        ({"field_name": "\0"}, 400),
        ({"field_name": "((("}, 403),
        ({"model_name": "((("}, 403),
        ({"app_label": "((("}, 403),
        # A reference, but on no page of the console.
        ({"app_label": "memories", "model_name": "memoryhistory", "field_name": "memory"}, 403),
    ):
        assert completed(console, **{**source, **over}) == status, over


def test_autocomplete_serves_what_the_role_may_see(viewer, acme):
    key = {"app_label": "accounts", "model_name": "apikey", "field_name": "organization"}
    assert completed(viewer, **key) == 200
    assert CANARY not in viewer.get(reverse("admin:autocomplete"), key).content.decode()
