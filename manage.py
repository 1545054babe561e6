#!/usr/bin/env python
"""Run one of the project's commands: `manage.py help` lists them."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentmem_site.settings")
    from django.core.management import execute_from_command_line  # after the settings are named

    from agentmem_site.embedded import EmbeddedError

    try:
        execute_from_command_line(sys.argv)
    except EmbeddedError as error:  # the data directory, told before any command begins
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
