"""Each model of the console is listed, searched, added, changed, deleted and restored; by role."""

import re
from typing import Any

import pytest
from django.contrib import admin
from django.urls import reverse

from accounts.models import AuditEvent, Member, Organization
from accounts.tenancy import platform, tenant
from memories.models import Agent
from tests.console.cases import CANARY, CASES, Case
from tests.console.sending import sent

pytestmark = pytest.mark.unguarded
MODELS = sorted(admin.site._registry, key=lambda model: model._meta.label)
names = [model._meta.model_name for model in MODELS]


def url(model: Any, page: str, /, *args: Any, **query: Any) -> str:
    meta = model._meta
    name = f"admin:{meta.app_label}_{meta.model_name}_{page}"
    return reverse(name, args=args, query=query or None)


def case_of(model: Any) -> Case:
    assert model in CASES, (
        f"{model} has a page in the console and no case in tests/console/cases.py"
    )
    return CASES[model]


def rows(model: Any, organization: Organization) -> Any:
    return model.objects.for_organization(organization)


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_a_list_shows_and_finds_its_rows(model, console, acme):
    case = case_of(model)
    case.make(acme)
    page = console.get(url(model, "changelist"))
    assert page.status_code == 200
    assert CANARY in page.content.decode()

    listed = console.get(url(model, "changelist", q=case.search))
    assert CANARY in listed.content.decode()
    missed = console.get(url(model, "changelist", q="nothing-is-called-this"))
    assert missed.context["cl"].result_count == 0


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_a_page_and_its_history_open(model, console, acme):
    row = case_of(model).make(acme)
    assert CANARY in console.get(url(model, "change", row.pk)).content.decode()
    assert console.get(url(model, "history", row.pk)).status_code == 200


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_a_row_is_added_changed_deleted_and_restored(model, console, acme, alice):
    case = case_of(model)
    if case.is_listed_only:
        assert console.get(url(model, "add")).status_code == 403
        return
    assert console.get(url(model, "add")).status_code == 200
    before = set(rows(model, acme).values_list("pk", flat=True)) if model is Member else set()
    page = console.post(url(model, "add"), {**case.form, **case.references(acme)})
    assert page.status_code in (200, 302)
    assert "adminform" not in (page.context or {}), page.context["adminform"].form.errors
    with tenant(acme):
        row = rows(model, acme).exclude(pk__in=before).get()
        assert row.created_by_id == alice.pk

    data = sent(console.get(url(model, "change", row.pk))) | case.change
    page = console.post(url(model, "change", row.pk), data)
    assert page.status_code == 302, page.context["adminform"].form.errors
    with tenant(acme):
        row = rows(model, acme).get(pk=row.pk)
        for name, value in case.change.items():
            assert getattr(row, name) == value
        changes = AuditEvent.objects.for_organization(acme).get(
            action="updated", resource_id=row.pk
        )
        assert set(changes.changes["fields"]) == set(case.change)
        assert changes.actor_name == alice.email
        assert changes.ip == "127.0.0.1"

    confirmation = console.get(url(model, "delete", row.pk))
    assert f"This affects 1 {model._meta.verbose_name}" in confirmation.content.decode()
    page = console.post(url(model, "delete", row.pk))
    assert page.url == url(model, "changelist")
    with tenant(acme):
        assert rows(model, acme).get(pk=row.pk).is_deleted

    lying = console.get(url(model, "change", row.pk)).content.decode()
    assert "In the trash since" in lying
    assert 'name="_save"' not in lying
    assert str(row.pk) not in console.get(url(model, "changelist")).content.decode()
    in_trash = console.get(url(model, "changelist", is_deleted=1)).content.decode()
    assert str(row.pk) in in_trash

    assert console.get(url(model, "restore", row.pk)).status_code == 200
    assert console.post(url(model, "restore", row.pk)).url == url(model, "change", row.pk)
    with tenant(acme):
        assert not rows(model, acme).get(pk=row.pk).is_deleted


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_only_rows_in_the_trash_can_be_purged(model, console, acme):
    case = case_of(model)
    row = case.make(acme)
    can_purge = admin.site._registry[model].can_purge and not case.is_listed_only
    assert console.post(url(model, "purge", row.pk)).status_code == 403  # it is not in the trash
    if case.is_listed_only:
        return
    console.post(url(model, "delete", row.pk))
    page = console.post(url(model, "purge", row.pk))
    assert page.status_code == (302 if can_purge else 403)
    with tenant(acme):
        assert rows(model, acme).filter(pk=row.pk).exists() is not can_purge


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_another_organization_sees_and_reaches_nothing(model, foreign, console, acme):
    row = case_of(model).make(acme)
    listed = foreign.get(url(model, "changelist"))
    assert CANARY not in listed.content.decode()
    for page in ("change", "delete", "history", "restore", "purge"):
        for method in (foreign.get, foreign.post):
            answer = method(url(model, page, row.pk))
            assert answer.status_code in (302, 403)
            if answer.status_code == 302:
                assert answer.url == reverse("admin:index")
    has_trash = bool(admin.site._registry[model].trash_filters)
    for query in ({"q": case_of(model).search}, {"is_deleted": "1"} if has_trash else {}):
        page = foreign.get(url(model, "changelist", **query), follow=True)
        listed = page.context["cl"].result_list
        assert row.pk not in {found.pk for found in listed}
    picked = {"action": "move_to_trash", "_selected_action": str(row.pk), "confirmed": "yes"}
    foreign.post(url(model, "changelist"), picked)
    with platform():
        assert not getattr(model.objects.get(pk=row.pk), "is_deleted", False)


def test_autocomplete_offers_live_rows_of_the_organization(console, foreign, acme):
    live = CASES[Agent].make(acme)
    deleted = CASES[Agent].make(acme)
    console.post(url(Agent, "delete", deleted.pk))
    query = {"app_label": "agent_sessions", "model_name": "session", "field_name": "agent"}
    offered = reverse("admin:autocomplete", query=query)
    assert [r["id"] for r in console.get(offered).json()["results"]] == [str(live.pk)]
    assert foreign.get(offered).json()["results"] == []


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_a_viewer_reads_but_changes_nothing(model, viewer, acme):
    row = case_of(model).make(acme)
    if model in (AuditEvent,) or model._meta.model_name == "apikey":
        assert viewer.get(url(model, "changelist")).status_code == 403
        return
    page = viewer.get(url(model, "change", row.pk)).content.decode()
    assert CANARY in page
    assert 'name="_save"' not in page
    assert viewer.get(url(model, "add")).status_code == 403
    for name in ("change", "delete"):
        assert viewer.post(url(model, name, row.pk)).status_code == 403


def test_a_user_writes_memories_and_sessions_and_nothing_else(writer, acme):
    allowed = {m for m in MODELS if writer.get(url(m, "add")).status_code == 200}
    assert {m._meta.model_name for m in allowed} == {"memory", "session", "run", "message"}
    row = CASES[Agent].make(acme)
    assert writer.post(url(Agent, "change", row.pk)).status_code == 403


@pytest.mark.parametrize("model", MODELS, ids=names)
def test_a_superuser_sees_every_organization_by_name(model, platform_console, acme, globex):
    case_of(model).make(acme)
    page = platform_console.get(url(model, "changelist")).content.decode()
    assert CANARY in page
    if model is not Organization:
        assert "Acme" in page
        assert ("Organization" in page) is True
        other = url(model, "changelist", organization__id__exact=globex.pk)
        assert CANARY not in platform_console.get(other).content.decode()
    if model is not AuditEvent:
        assert platform_console.get(url(model, "add")).status_code == 200


def test_no_page_loads_from_another_host(console, acme):
    html = console.get(reverse("admin:index")).content.decode()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
