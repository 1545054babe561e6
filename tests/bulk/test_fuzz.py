"""Random lines: good ones are stored unchanged, bad ones are named."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.bulk import USERS
from accounts.models import User
from accounts.tenancy import tenant
from agentmem_site.bulk.encode import Encoder
from agentmem_site.bulk.lines import RawLine
from agentmem_site.bulk.readers import lines_of
from agentmem_site.bulk.spec import LineError
from tests.bulk import fuzz

COLUMNS = ["external_id", "name", "email", "timezone", "status", "metadata"]


def differences(seed: int, count: int, *, at_once: int = 5_000) -> tuple[int, list[str]]:
    """How many lines were good; where the loader and the reference (fuzz.py) disagree."""
    encoder = Encoder(USERS, keeps_time=True)
    good, wrong = 0, []
    given = list(fuzz.lines(seed, count))
    for start in range(0, count, at_once):
        batch = given[start : start + at_once]
        rejected: list[LineError] = []
        raw = [
            RawLine(number, line, offset)
            for number, line, offset in lines_of([b"\n".join(batch) + b"\n"])
        ]
        encoder.encode(encoder.decode(raw, rejected.append), rejected.append)
        refused = {error.line: error for error in rejected}
        assert len(refused) == len(rejected)
        for number, line in enumerate(batch, start=1):
            try:
                expected = "" if fuzz.row_of(line) is not None else "blank"
                good += not expected
            except fuzz.Bad as error:
                expected = str(error) or "bad"
            if bool(number in refused) != (expected not in ("", "blank")):
                found = refused.get(number, "let through")
                wrong.append(f"{line[:300]!r}: {found}, and not: {expected or 'good'}")
    return good, wrong


def test_the_loader_agrees_with_the_reference_on_20_000_lines():
    good, wrong = differences(1, 20_000)
    assert wrong == []
    assert 8_000 < good < 16_000


@pytest.mark.slow
def test_the_loader_agrees_with_the_reference_on_a_million_lines():
    for seed in range(100, 150):
        good, wrong = differences(seed, 20_000)
        assert wrong == [], seed
        assert good > 8_000


def load_skipping(file: Path, rejects: Path) -> dict[str, Any]:
    """The report of a load with rejected lines."""
    out = io.StringIO()
    with pytest.raises(CommandError) as finished:
        call_command(
            "bulk_upsert",
            "users",
            str(file),
            organization="acme",
            on_error="skip",
            rejects=rejects,
            batch_size=1000,
            preserve_timestamps=True,
            json=True,
            stdout=out,
        )
    assert finished.value.returncode == 3
    return json.loads(out.getvalue())


def loaded_as_expected(acme, folder: Path, seed: int, count: int) -> None:
    """Loads the lines and compares the table, and the rejects."""
    lines = list(fuzz.lines(seed, count))
    file, rejects = folder / f"{seed}.jsonl", folder / f"{seed}.rejects.jsonl"
    file.write_bytes(b"\n".join(lines))
    expected, bad, blank = {}, [], 0
    for number, line in enumerate(lines, start=1):
        try:
            row = fuzz.row_of(line)
        except fuzz.Bad:
            bad.append(number)
            continue
        if row is None:
            blank += 1
        else:
            expected[row["external_id"]] = row
    report = load_skipping(file, rejects)
    assert (report["read"], report["rejected"]) == (count - blank, len(bad))
    named = [json.loads(line) for line in rejects.read_bytes().splitlines()]
    assert sorted(error["line"] for error in named) == bad
    data = file.read_bytes()
    for error in named:
        assert error["code"], error
        assert error["message"], error
        start = error["byte_offset"]
        assert data.count(b"\n", 0, start) == error["line"] - 1
    with tenant(acme):
        rows = User.objects.for_organization(acme)
        stored = {row["external_id"]: row for row in rows.values(*COLUMNS)}
        rows._raw_delete(rows.db)  # (nothing refers to them)
    for row in stored.values():  # (1e37 comes back as a whole number)
        row["metadata"] = json.loads(json.dumps(row["metadata"]), parse_int=float)
    assert stored == expected


def test_good_lines_are_stored_unchanged_and_bad_ones_named(acme, tmp_path):
    for seed in range(4):
        loaded_as_expected(acme, tmp_path, seed, 5_000)


@pytest.mark.slow
def test_good_lines_of_a_million_are_stored_and_bad_ones_named(acme, tmp_path):
    loaded_as_expected(acme, tmp_path, 999, 10_000)
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    for seed in range(1000, 1100):
        loaded_as_expected(acme, tmp_path, seed, 10_000)
    assert memory_bytes("VmHWM") < before + 150 * 1024 * 1024


def memory_bytes(kind: str) -> int:
    found = re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
