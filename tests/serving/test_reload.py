"""`serve --reload`, as `make dev` runs it."""

import os
from pathlib import Path

import pytest
from django.conf import settings

from agentmem_site.management.commands.serve import reload_arguments
from tests.serving.server import Server, until

PACKAGES = {"agentmem_site", "accounts", "memories", "sessions"}
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.unguarded]


def test_a_changed_template_restarts_the_server(tmp_path, transactional_db):
    server = Server(tmp_path, "--reload")
    try:
        before = server.workers()
        assert before
        os.utime(settings.BASE_DIR / "templates" / "console" / "plain.html")
        until(lambda: server.workers() and not set(before) & set(server.workers()), "a new one")
    finally:
        server.stop()


def test_the_data_directory_is_not_watched():
    """The data directory changes all the time."""
    prefix = "--reload-paths="
    watched = {
        Path(argument.removeprefix(prefix))
        for argument in reload_arguments()
        if argument.startswith(prefix)
    }
    assert watched == {settings.BASE_DIR / name for name in [*PACKAGES, "templates"]}
    assert not [folder for folder in watched if settings.DATA_DIR.is_relative_to(folder)]
