#!/usr/bin/env python
"""Runs the commands of the project: `manage.py help` lists them."""

import os
import sys

TEMPORARY, INTERRUPTED = 75, 130
MISSING = {"42P01", "42703"}  # undefined_table, undefined_column


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentmem_site.settings")
    from django.core.management import execute_from_command_line  # after the settings are named
    from django.db import InternalError, OperationalError, ProgrammingError

    from agentmem_site.db.outages import outage_of
    from agentmem_site.db.refusals import outage_message
    from agentmem_site.variables import exit_on_refusal

    try:
        with exit_on_refusal():  # before any command begins
            execute_from_command_line(sys.argv)
    # For commands that do not handle these themselves.
    except (OperationalError, InternalError) as error:
        if outage_of(error) is None or "--traceback" in sys.argv:
            raise
        sys.stderr.write(f"Error: {outage_message(error)}\n")
        sys.exit(TEMPORARY)
    except ProgrammingError as error:
        state = getattr(error.__cause__, "sqlstate", None)
        if state not in MISSING or "--traceback" in sys.argv:
            raise
        sys.exit("Error: The database lacks a table or a column: run `manage.py migrate`.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
