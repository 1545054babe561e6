"""The console in a browser: what a person sees and does, and that no other host is contacted."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from accounts.models import User
from accounts.tenancy import tenant
from memories.models import Agent, Block, Memory
from memories.services.agents import agents, blocks
from memories.services.memories import memories
from tests.console.conftest import PASSWORD
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_user,
)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.unguarded]

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Warnings of unfold and Django are ignored. A page that fails or contacts another host is a defect.
QUIET = ("log", "info", "debug")


@pytest.fixture(scope="session")
def chromium() -> str:
    own = shutil.which("chromium") or shutil.which("google-chrome")
    if own is None:
        with ThreadPoolExecutor(1) as thread:
            own = thread.submit(_bundled).result()
    if own is None and os.environ.get("AGENTMEM_REQUIRE_BROWSER"):
        pytest.fail("Chromium is not installed, and CI does not skip the browser tests.")
    if own is None:
        pytest.skip("Chromium is not installed: run `playwright install chromium`.")
    return own


def _bundled() -> str | None:
    with playwright.sync_playwright() as started:
        path = started.chromium.executable_path
    return path if Path(path).exists() else None


def browse(chromium: str, origin: str, theme: str, visit: Callable[[Any], None]) -> list[str]:
    """Lets `visit` drive a page; returns the problems. Runs in its own thread: Playwright's event
    loop would make Django refuse the database in this one."""
    problems: list[str] = []

    def requested(request: Any) -> None:
        if not request.url.startswith((origin, "data:", "blob:")):
            problems.append(f"request to {request.url}")

    def drive() -> None:
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            page = browser.new_page(color_scheme=theme, viewport={"width": 1440, "height": 900})
            page.set_default_timeout(10_000)
            page.on("request", requested)
            page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
            page.on(
                "console", lambda m: m.type in QUIET or problems.append(f"{page.url}: {m.text}")
            )
            try:
                visit(page)
            finally:
                browser.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(drive).result()
    return problems


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_person_signs_in_reads_restores_and_signs_out(theme, chromium, live_server, acme, alice):
    ada, nora = make_user(acme, name="Ada"), make_agent(acme, name="Nora")
    session = make_session(acme, name="Late parcel", user=ada, agent=nora)
    run = make_run(session, content="It is on its way.")
    make_message(acme, session=session, run=run, text="Where is it?", user=ada)
    deleted = make_agent(acme, name="Old bot")
    with tenant(acme):
        rows = Agent.objects.for_organization(acme).filter(pk=deleted.pk)
        agents.delete(rows, organization=acme, actor=TESTER)
    seen: dict[str, Any] = {}

    def visit(page: Any) -> None:
        page.goto(f"{live_server.url}/admin/")
        page.fill("[name=username]", alice.email)
        page.fill("[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.get_by_text("Newest sessions").wait_for()
        seen["is dark"] = page.evaluate("document.documentElement.classList.contains('dark')")

        page.click("nav >> text=Agents >> nth=1")
        page.click("#main >> text=Nora")
        page.wait_for_selector("[name=system]")
        page.fill("[name=topic]", "parcels")
        page.click("summary:has-text('Model configuration')")
        page.fill("[name=llm_config]", '{"model": "m"}')
        page.click("button[name=_continue]")
        page.get_by_text("was changed successfully").wait_for()

        page.click("#main >> text=Late parcel")
        seen["conversation"] = page.inner_text("#conversation")
        # The reference is chosen from the server's suggestions.
        page.click(".field-agent .select2-selection")
        page.keyboard.type("No")
        page.click(".select2-results__option:has-text('Nora')")
        page.screenshot(full_page=True)

        page.click("nav >> text=Trash")
        page.click("button:has-text('Restore')")
        page.get_by_text("Restored: 1 agent.").wait_for()
        page.get_by_text("The trash is empty.").wait_for()

        page.goto(f"{live_server.url}/admin/memories/agent/")
        page.click("text=Filters")
        page.wait_for_timeout(200)

    assert browse(chromium, live_server.url, theme, visit) == []
    assert seen["is dark"] is (theme == "dark")
    for words in ("Where is it?", "It is on its way.", "Completed"):
        assert words in seen["conversation"]
    with tenant(acme):
        nora = Agent.objects.for_organization(acme).get(pk=nora.pk)
        assert (nora.topic, nora.llm_config) == ("parcels", {"model": "m"})
        assert not Agent.objects.for_organization(acme).get(pk=deleted.pk).is_deleted


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_person_loads_a_file_and_downloads_the_rejected_lines(
    theme, chromium, live_server, acme, alice, tmp_path
):
    file = tmp_path / "people.jsonl"
    file.write_text('{"external_id": "ann"}\n{"nmae": "x"}\n{"external_id": "bob"}\n')
    seen: dict[str, Any] = {}

    def visit(page: Any) -> None:
        page.goto(f"{live_server.url}/admin/")
        page.fill("[name=username]", alice.email)
        page.fill("[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.click("nav >> text=Import")
        page.select_option("[name=resource]", "users")
        page.set_input_files("[name=file]", file)
        page.click("button:has-text('Load')")
        seen["report"] = page.inner_text("#report")
        seen["rejects"] = page.inner_text("#rejects")
        with page.expect_download() as download:
            page.click("text=Download all")
        seen["file"] = Path(download.value.path()).read_text()
        page.screenshot(full_page=True)

    assert browse(chromium, live_server.url, theme, visit) == []
    assert "Loaded" in seen["report"]
    assert "Unknown field" in seen["rejects"]
    (reject,) = map(json.loads, seen["file"].splitlines())
    assert (reject["line"], reject["field"], reject["code"]) == (2, "nmae", "unknown_field")
    with tenant(acme):
        rows = User.objects.for_organization(acme)
        assert sorted(rows.values_list("external_id", flat=True)) == ["ann", "bob"]


def test_a_person_saves_what_an_agent_changed_meanwhile(
    chromium, live_server, acme, alice, tmp_path
):
    memory = make_memory(acme, content="  Likes tea,\nand\tcake.\n", speaker="Ada")
    block = make_block(acme, value="I am helpful.")
    typed: dict[str, Any] = {}
    seen: dict[str, Any] = {}

    def agent_writes(row: Any, records: Any, **values: Any) -> None:
        def write() -> None:
            try:
                with tenant(acme):
                    records.update(row, organization=acme, actor=TESTER, values=values)
            finally:
                connection.close()

        with ThreadPoolExecutor(1) as thread:  # (Playwright's own has an event loop)
            thread.submit(write).result()

    def visit(page: Any) -> None:
        page.goto(f"{live_server.url}/admin/")
        page.fill("[name=username]", alice.email)
        page.fill("[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.get_by_text("Newest sessions").wait_for()

        change = f"{live_server.url}/admin/memories/memory/{memory.pk}/change/"
        page.goto(change)
        agent_writes(memory, memories, content="Likes coffee,\n<b>black</b>.\n", speaker="Grace")
        page.fill("[name=importance]", "0.9")
        page.click("button[name=_continue]")
        page.get_by_text("was changed successfully").wait_for()
        typed["untouched"] = page.input_value("[name=content]")

        page.fill("[name=content]", "Likes cocoa.\nWarm.")
        agent_writes(memory, memories, content="Likes water,\nstill.\n", context="At noon")
        page.click("button[name=_continue]")
        page.get_by_text("Current value", exact=True).wait_for()
        seen["refused"] = page.inner_text(".am-meanwhile")
        seen["box"] = page.input_value("[name=content]")
        seen["context"] = page.input_value("[name=context]")
        page.screenshot(path=tmp_path / "refused.png", full_page=True)
        page.click("button[name=_continue]")
        page.get_by_text("was changed successfully").wait_for()

        page.goto(f"{live_server.url}/admin/memories/block/{block.pk}/change/")
        page.fill("[name=value]", "I am brief.")
        with ThreadPoolExecutor(1) as thread:
            thread.submit(to_trash).result()
        page.click("button[name=_continue]")
        page.get_by_text("to the trash while you had it open").wait_for()
        seen["deleted"] = page.inner_text("#main")
        page.screenshot(path=tmp_path / "deleted.png", full_page=True)

    def to_trash() -> None:
        try:
            with tenant(acme):
                rows = Block.objects.for_organization(acme).filter(pk=block.pk)
                blocks.delete(rows, organization=acme, actor=TESTER)
        finally:
            connection.close()

    problems = browse(chromium, live_server.url, "light", visit)
    assert [problem for problem in problems if "409 (Conflict)" not in problem] == []
    assert typed["untouched"] == "Likes coffee,\n<b>black</b>.\n"
    assert "Likes water,\nstill." in seen["refused"]
    assert "Likes cocoa.\nWarm." in seen["refused"]
    assert (seen["box"], seen["context"]) == ("Likes cocoa.\nWarm.", "At noon")
    assert "I am brief." in seen["deleted"]
    with tenant(acme):
        stored = Memory.objects.for_organization(acme).get(pk=memory.pk)
    assert (stored.content, stored.context, stored.speaker) == (
        "Likes cocoa.\nWarm.",
        "At noon",
        "Grace",
    )
    assert stored.importance == 0.9
