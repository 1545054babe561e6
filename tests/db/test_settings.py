"""The settings: invalid ones are refused by name, and all are documented."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from agentmem_site import settings as site
from agentmem_site.variables import HOST, ORIGIN, Variables

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t"


def of(value: str) -> Variables:
    return Variables({"X": value})


@pytest.mark.parametrize(
    ("read", "value", "wanted"),
    [
        (lambda v: v.integer("X", 7), "", 7),
        (lambda v: v.integer("X", 7), " 8 ", 8),
        (lambda v: v.number("X", 7), "0.5", 0.5),
        (lambda v: v.flag("X", True), " ", True),
        (lambda v: v.flag("X", True), "Off", False),
        (lambda v: v.flag("X", False), "1", True),
        (lambda v: v.text("X", "a"), "", "a"),
        (lambda v: v.text("X"), "$Y", "$Y"),
        (
            lambda v: v.listed("X", ["a"], pattern=HOST, example="a"),
            "a.b, [::1] ,.c,",
            ["a.b", "[::1]", ".c"],
        ),
        (lambda v: v.listed("X", ["a"], pattern=HOST, example="a"), "", ["a"]),
        (
            lambda v: v.listed("X", [], pattern=ORIGIN, example="a"),
            "https://a.b, http://*.c:8000",
            ["https://a.b", "http://*.c:8000"],
        ),
        (lambda v: v.one_of("X", "a", ["a", "b"]), "b", "b"),
        (lambda v: v.url("X", "https://a/v1"), "http://b:80/v1", "http://b:80/v1"),
    ],
)
def test_a_variable_is_read(read, value, wanted):
    assert read(of(value)) == wanted


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (lambda v: v.integer("X", 7), "many", "X must be a whole number, 0 or more."),
        (lambda v: v.integer("X", 7, minimum=1), "0", "X must be a whole number, 1 or more."),
        (
            lambda v: v.integer("X", 7, minimum=1, maximum=9),
            "10",
            "X must be a whole number, 1 to 9.",
        ),
        (lambda v: v.integer("X", 7), "1.5", "X must be a whole number, 0 or more."),
        (lambda v: v.number("X", 7), "30s", "X must be a number, 0 or more."),
        (lambda v: v.number("X", 7), "nan", "X must be a number, 0 or more."),
        (lambda v: v.number("X", 7), "-1", "X must be a number, 0 or more."),
        (lambda v: v.flag("X", False), "maybe", "X must be on or off."),
        (lambda v: v.one_of("X", "a", ["a", "b"]), "c", "X must be one of a, b."),
        (
            lambda v: v.listed("X", [], pattern=HOST, example="a.b"),
            "https://a",
            "X must be like a.b, separated by commas.",
        ),
        (
            lambda v: v.listed("X", [], pattern=ORIGIN, example="https://a"),
            "a.b",
            "X must be like https://a, separated by commas.",
        ),
        (lambda v: v.url("X", "https://a/v1"), "notaurl", "X must be like https://a/v1."),
        (
            lambda v: v.url("X", "https://a/v1"),
            "http://b:x/",
            "X must be like https://a/v1.",
        ),
    ],
)
def test_a_variable_is_refused_by_its_name(read, value, message):
    with pytest.raises(ImproperlyConfigured) as refusal:
        read(of(value))
    assert str(refusal.value) == message


MANAGE, RSGI = ("manage.py",), ("-c", "import agentmem_site.rsgi")


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ((*MANAGE, "sweep"), "DATABASE_URL", f"postgres://u:{SECRET}/x@h/d"),
        ((*MANAGE, "migrate"), "DATABASE_URL", f"postgres://u:a#{SECRET}@h/d"),
        ((*MANAGE, "serve"), "DATABASE_URL", f"'postgres://u:{SECRET}@h/d'"),
        ((*MANAGE, "check"), "DATABASE_URL", f"postgres://u:{SECRET}@h/d?pgbouncer=true"),
        ((*MANAGE, "serve"), "AGENTMEM_THREADS", SECRET),
        (RSGI, "AGENTMEM_HTTPS", SECRET),
        (RSGI, "DATABASE_URL", SECRET),
    ],
)
def test_a_misspelt_setting_stops_every_command(command, name, value):
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"Error: {name}")
    assert ended.stderr.count("\n") == 1
    assert SECRET not in ended.stderr + ended.stdout


# -- the page ------------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """name -> default, from docs/operations.md."""
    page = (ROOT / "docs/operations.md").read_text()
    table = page.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", table, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a setting stands there twice"
    return dict(rows)


def test_the_page_has_each_setting_and_its_default():
    assert documented() == site.env.defaults


def test_every_setting_that_is_named_exists():
    papers = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    sources = [
        path
        for package in ("agentmem_site", "accounts", "memories", "sessions")
        for path in (ROOT / package).rglob("*.py")
    ]
    assert len(papers) > 10 and len(sources) > 100
    for path in [*papers, *sources, ROOT / "Makefile"]:
        for name in re.findall(r"\bAGENTMEM_[A-Z_]*[A-Z]\b(?!_)", path.read_text()):
            is_family = any(known.startswith(f"{name}_") for known in site.env.defaults)
            assert name in site.env.defaults or is_family, f"{path} names {name}"
