"""`manage.py quickstart`: creates a demo organization with data. Safe to run again."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser

from accounts.access import organization_by_slug
from accounts.actors import command_actor
from accounts.errors import NotFound
from accounts.models import ApiKey, Member, Organization
from accounts.services.organizations import organizations
from accounts.tenancy import tenant
from agentmem_site import samples
from agentmem_site.management.commands.serve import refuse_taken_port
from agentmem_site.private import make_folder, open_private
from memories.models import Agent, Block, Tool
from memories.services.agents import attach_block, attach_tool

SLUG = "demo"
EMAIL = "demo@agentmem.example"
SESSIONS = 300
ACTOR = command_actor("quickstart")
_SAMPLE_LOADED = "sample_loaded"


class Command(BaseCommand):
    help = "Migrates, then creates the organization `demo` with a member, a key and sample data."
    requires_system_checks: list[str] = []  # there are no tables yet

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="port of the printed URLs")

    def handle(self, *args: Any, **options: Any) -> None:
        refuse_taken_port("127.0.0.1", options["port"])
        call_command("migrate", verbosity=0)
        organization = self._organization()
        password = self._password(organization)
        key = self._key(organization)
        if _SAMPLE_LOADED not in organization.settings:
            self._load_sample(organization)
        self._welcome(f"http://127.0.0.1:{options['port']}", password, key)

    def _organization(self) -> Organization:
        try:
            return organization_by_slug(SLUG)
        except NotFound:
            _printed("create_organization", SLUG)
            return organization_by_slug(SLUG)

    def _password(self, organization: Organization) -> str:
        if Member.objects.for_organization(organization).exists():
            return ""
        return _printed("create_member", EMAIL, organization=SLUG, role="owner", name="Demo")

    def _key(self, organization: Organization) -> str:
        with tenant(organization):
            if ApiKey.objects.for_organization(organization).exists():
                return ""
        return _printed("create_api_key", organization=SLUG, name="quickstart", role="admin")

    def _load_sample(self, organization: Organization) -> None:
        """Loads files with `bulk_upsert`, as anybody would, with its progress bar."""
        users, agents = samples.population(SESSIONS)
        counts = {
            "users": users,
            "agents": agents,
            "blocks": 2 * agents,
            "tools": 20,
            "sessions": SESSIONS,
            "messages": 7 * SESSIONS,
            "memories": 4 * SESSIONS,
        }
        folder = settings.DATA_DIR / "sample"
        make_folder(folder)
        for resource, count in counts.items():
            path: Path = folder / f"{resource}.jsonl"
            with open_private(path, "wb") as file:
                file.writelines(samples.lines(resource, row_count=count, seed=0))
            call_command(
                "bulk_upsert",
                resource,
                str(path),
                organization=SLUG,
                preserve_timestamps=True,
                stdout=self.stdout,
            )
        self._equip_agents(organization)
        # Not at the next run: by then somebody may have changed or deleted some of it.
        with tenant(organization):
            organizations.update(
                organization,
                organization=organization,
                actor=ACTOR,
                values={"settings": {**organization.settings, _SAMPLE_LOADED: True}},
            )

    def _equip_agents(self, organization: Organization) -> None:
        """Attaches two blocks and two tools to each agent, as a person would."""
        by: dict[str, Any] = {"organization": organization, "actor": ACTOR}
        with tenant(organization):
            all_blocks, all_tools = (
                list(model.objects.for_organization(organization).live().order_by("created_at"))
                for model in (Block, Tool)
            )
            agents = Agent.objects.for_organization(organization).live().order_by("created_at")
            for number, agent in enumerate(agents):
                start = 2 * number
                labels = {block.label: block for block in all_blocks[start : start + 4]}
                for block in list(labels.values())[:2]:
                    attach_block(agent, block, **by)
                for tool in (all_tools * 2)[start % len(all_tools) :][:2]:
                    attach_tool(agent, tool, **by)

    def _welcome(self, url: str, password: str, key: str) -> None:
        write: Callable[[str], None] = self.stdout.write
        manage = f"{os.path.relpath(sys.executable)} manage.py"
        write("")
        write(f"Console   {url}/admin/")
        if password:
            write(f"Sign in   {EMAIL}   password {password}   (shown this once)")
        else:
            again = f"{manage} changepassword {EMAIL} --organization {SLUG}"
            write(f"Sign in   {EMAIL}   (password forgotten? {again})")
        write(f"API docs  {url}/api/docs/")
        if key:
            write(f"API key   {key}   (shown this once)")
            write(_first_request(url, key))
        else:
            write("API key   was shown at the first run. For a new one:")
            write(f"          {manage} create_api_key --organization {SLUG} --name NAME")
            write(_first_request(url, "YOUR_KEY"))


def _first_request(url: str, key: str) -> str:
    body = '{"query": "Why was the energy bill so high?", "limit": 3}'
    return (
        f"\n  curl -H 'X-API-Key: {key}' -H 'Content-Type: application/json' \\\n"
        f"    {url}/api/v1/memories/search -d '{body}'\n"
    )


def _printed(command: str, *args: Any, **options: Any) -> str:
    """Runs the command and returns the one result that it prints."""
    out = io.StringIO()
    call_command(command, *args, **options, stdout=out)
    return out.getvalue().strip()
