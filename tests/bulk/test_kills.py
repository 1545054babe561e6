"""Whatever is killed, and whenever: nothing is lost, nothing is doubled, all reports are right.

Source: RELIABILITY.md 4; the harness is tests/bulk/kills.
"""

import pytest

from tests.bulk.kills.harness import Installation, Run

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    with Installation(tmp_path_factory.mktemp("kills")) as installation:
        yield installation


def test_loads_survive_a_dozen_kills(installation):
    # (A full disk is waited for, half a minute at most.)
    assert_survived(installation, kills=12, seed=1, without=["disk full"])


@pytest.mark.slow
def test_loads_survive_a_thousand_kills(installation):
    assert_survived(installation, kills=1000, seed=7)


def assert_survived(installation, *, kills, seed, without=()):
    messages = []
    run = Run(installation, seed=seed, say=messages.append, most_faults=5, without=without)
    figures = run.until(kills)
    print(figures)  # noqa: T201 - the figures of the run: `pytest -s` shows them
    assert not run.faults, "\n\n".join(run.faults)
    assert figures.kills >= kills
