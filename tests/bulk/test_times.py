"""Times as databases, programs and spreadsheets print them."""

from datetime import UTC, datetime

import pytest
from django.core.management import CommandError, call_command

from accounts.tenancy import tenant
from agentmem_site.bulk.notices import Notices
from agentmem_site.bulk.times import Times
from memories.models import Memory
from tests.api.conftest import client_with
from tests.bulk.loading import load

TEN = datetime(2026, 1, 31, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    "written",
    [
        "2026-01-31T10:00:00Z",
        "2026-01-31 10:00:00+00",  # PostgreSQL
        "2026-01-31 07:00:00-03",
        "2026-01-31 15:30:00.000+0530",
        "2026-01-31 10:00:00 UTC",  # BigQuery
        "2026-01-31T10:00Z",
        "20260131T100000Z",
        "2026-01-31 10:00:00.000000000+00:00",  # pandas
        "2026-01-31 10:00:00,000 +0000",  # logs
        "2026-01-31 11:00:00 +0100 CET m=+0.0042",  # Go
        "2026-01-31T11:00+01:00[Europe/Berlin]",  # Java
        "2026-01-31 11:00:00.000 Europe/Berlin",  # Trino
        "Sat, 31 Jan 2026 10:00:00 GMT",  # RFC 2822, JavaScript
        "Sat Jan 31 2026 11:00:00 GMT+0100 (Central European Standard Time)",
        "Sat Jan 31 10:00:00 2026 UTC",  # PostgreSQL's own style
        "Sat Jan 31 10:00:00 UTC 2026",  # date(1)
        "January 31, 2026 at 10:00:00\u202fAM UTC",
        "31.01.2026 10:00:00 UTC",
        "1/31/2026 10:00 AM GMT",
        "/Date(1769853600000)/",
        1769853600,
        1769853600.0,
        "1769853600",
        "1.7698536E9",  # BigQuery's API
        1769853600000,
        "1769853600000000",
        1769853600000000000,
    ],
)
def test_what_programs_print_is_the_same_moment(written):
    assert Times().read(written) == TEN


@pytest.mark.parametrize(
    ("written", "microseconds"),
    [
        ("2026-01-31T10:00:00.5Z", 500_000),
        ("2026-01-31 10:00:00.123456+00", 123_456),
        ("2026-01-31 10:00:00.123456-00", 123_456),
        ("2026-01-31 10:00:00.1234567+00", 123_457),
        ("2026-01-31 10:00:00.123456499+00", 123_456),
        (1769853600.123456, 123_456),
        (1769853600123, 123_000),
    ],
)
def test_fractions_are_kept_to_the_microsecond(written, microseconds):
    assert Times().read(written) == TEN.replace(microsecond=microseconds)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-01-31 24:00:00Z", datetime(2026, 2, 1, tzinfo=UTC)),
        ("2026-12-31 23:59:60Z", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-01-31 12:30 AM UTC", datetime(2026, 1, 31, 0, 30, tzinfo=UTC)),
        ("2026-01-31 12:30 PM UTC", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_edges_of_a_day(written, expected):
    assert Times().read(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        "2026-07-01T12:00:00",
        "2026-07-01 12:00",
        "20260701T120000",
        "01.07.2026 12:00",
        "7/1/2026, 12:00:00 PM",
        "Jul 1, 2026 12:00 PM",
        20260701120000,
    ],
)
def test_a_time_without_a_zone_is_in_the_one_that_is_named(written):
    read = Times(zone="Europe/Berlin", date_order="mdy").read(written)
    assert read.astimezone(UTC) == datetime(2026, 7, 1, 10, tzinfo=UTC)
    with pytest.raises(ValueError, match=r"has no time zone; add Z .*--timezone names"):
        Times(date_order="mdy", has_options=True).read(written)


@pytest.mark.parametrize("written", ["2026-01-31", "2026/01/31", 20260131, "31-Jan-2026"])
def test_a_date_is_its_midnight_and_a_notice_says_where(written):
    notices = Notices()
    assert Times(notices=notices).read(written, "created_at") == TEN.replace(hour=0)
    assert any("their midnight in UTC; --timezone" in said for said in notices)
    berlin = Times(zone="Europe/Berlin").read(written)
    assert berlin.astimezone(UTC) == datetime(2026, 1, 30, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("order", "day", "month"), [("dmy", 1, 2), ("mdy", 2, 1), ("", None, None)]
)
def test_an_ambiguous_date_is_not_guessed(order, day, month):
    times = Times(date_order=order, has_options=True)
    if order:
        assert (times.read("01/02/2026").day, times.read("01-02-2026").month) == (day, month)
    else:
        with pytest.raises(ValueError, match="is ambiguous; --date-order dmy or mdy"):
            times.read("01/02/2026")
    assert times.read("13/02/2026" if order == "dmy" else "02/13/2026").day == 13


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("2026-02-30", "day is out of range"),
        ("2026-01-31 25:00:00Z", "hour must be in"),
        ("2026-01-31 13:00 PM UTC", "with AM or PM, an hour is 1 to 12"),
        ("2026-01-31 10:00:00 CET", "CET is the abbreviation of several"),
        ("2026-01-31 10:00:00 Mars/Phobos", "There is no time zone 'Mars/Phobos'"),
        ("2026-01-31 10:00:00+25:00", "no offset"),
        ("NaT", "is not a time"),
        ("", "is not a time"),
        ("9" * 5000, "is not a time"),
        ("2026-01-31 " * 1000, "is not a time"),
        (46053.4, "a spreadsheet's number of days"),
        (2e10, "Expected a moment between"),  # seconds or milliseconds?
        (-1, "Expected a moment between"),
        (float("nan"), "Expected a moment between"),
        (10**30, "Expected a moment between"),
        ("9999-12-31 24:00Z", "Expected a moment between"),
    ],
)
def test_what_is_no_time_is_refused(written, message):
    with pytest.raises(ValueError, match=message):
        Times().read(written)


def test_a_load_reads_them_in_lines_and_in_runs_and_says_what_it_took_for_what(acme, tmp_path):
    rows = [
        {"external_id": "a", "content": "one", "created_at": "2026-01-31 10:00:00+00"},
        {"external_id": "b", "content": "two", "created_at": 1769853600000},
        {"external_id": "c", "content": "three", "created_at": "2026-01-31T11:00:00"},
    ]
    report = load(tmp_path, "memories", rows, preserve_timestamps=True, timezone="Europe/Berlin")
    assert report["inserted"] == 3
    assert report["notices"] == ["created_at: numbers are read as milliseconds since 1970."]
    with tenant(acme):
        assert {m.created_at for m in Memory.objects.for_organization(acme)} == {TEN}
    runs = [{"run_id": "1", "started_at": "2026-01-31 10:00:00+00"}]
    assert load(tmp_path, "sessions", [{"session_id": "s", "runs": runs}])["runs"]["inserted"] == 1


def test_ignored_timestamps_are_reported(acme, tmp_path):
    rows = [{"external_id": "a", "content": "one", "created_at": "2026-01-31T10:00:00Z"}]
    (notice,) = load(tmp_path, "memories", rows)["notices"]
    assert notice.startswith("created_at of the lines is not kept")
    assert "--preserve-timestamps keeps it" in notice


def test_another_zone_is_another_meaning_of_the_same_line(acme, tmp_path):
    rows = [{"external_id": "a", "content": "one", "created_at": "2026-01-31T10:00:00"}]
    options = {"preserve_timestamps": True}
    assert load(tmp_path, "memories", rows, **options, timezone="UTC")["inserted"] == 1
    assert load(tmp_path, "memories", rows, **options, timezone="UTC")["unchanged"] == 1
    assert load(tmp_path, "memories", rows, **options, timezone="Asia/Tokyo")["updated"] == 1


def test_a_zone_that_nobody_knows_ends_the_command(acme):
    with pytest.raises(CommandError, match="There is no time zone 'Berlin'"):
        call_command(
            "bulk_upsert", "users", "none.jsonl", "--organization=acme", "--timezone=Berlin"
        )


def test_the_api_has_the_same_options_and_notices(acme, acme_key):
    api = client_with(acme_key)
    line = b'{"external_id": "a", "content": "one", "created_at": "2026-01-31T11:00:00"}'

    def post(query):
        path = f"memories/bulk?preserve_timestamps=true{query}"
        return api.generic("POST", path, line, "application/x-ndjson")

    refused = post("").json()
    assert "or `timezone` names the one" in refused["rejects"][0]["message"]
    assert post("&timezone=Mars").status_code == 400
    answer = post("&timezone=Europe/Berlin").json()
    assert (answer["inserted"], answer["notices"]) == (1, [])
    with tenant(acme):
        assert Memory.objects.for_organization(acme).get().created_at == TEN
