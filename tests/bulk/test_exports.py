"""An organization is exported as files and restored as the same rows."""

import hashlib
import io
import json
import random
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection
from pgvector import HalfVector

from accounts.models import AuditEvent, User
from accounts.services.users import users
from accounts.tenancy import tenant
from agentmem_site.db.fields import tenant_key
from agentmem_site.services import exports, loads
from agentmem_site.services.loads import LINKS, RESOURCES
from memories.models import (
    EMBEDDING_DIM,
    Agent,
    AgentBlock,
    AgentTool,
    Block,
    CachedVector,
    Memory,
    MemoryHistory,
    Tool,
)
from memories.services.agents import agents, attach_block, attach_tool, blocks
from memories.services.memories import memories
from sessions.models import Message, Run, Session
from sessions.services.conversations import runs, sessions
from tests.bulk.loading import load
from tests.makers import (
    TESTER,
    make_agent,
    make_block,
    make_memory,
    make_message,
    make_run,
    make_session,
    make_tool,
    make_user,
)

pytestmark = pytest.mark.django_db(transaction=True)

EXPORTED = [User, Agent, Block, Tool, AgentBlock, AgentTool, Session, Run, Message, Memory]
# Tenant tables that an export leaves out: secrets, derived rows, a worker's records.
LEFT_OUT = {"ApiKey", "CachedVector", "EmbedVisit", "LoadPart", "MemoryHistory"}
# Columns that an import sets anew: who created a row, and what a worker records in it.
NOT_EXPORTED = {
    "organization_id",
    "created_by_id",
    "last_updated_by_id",
    "is_indexed",
    "embedding_due_at",
}


def test_every_tenant_table_is_exported_or_left_out_on_purpose():
    all_tables = {m.__name__ for m in apps.get_models() if tenant_key(m) is not None}
    unnamed = all_tables - LEFT_OUT - {model.__name__ for model in EXPORTED}
    assert not unnamed, f"Name {unnamed} in EXPORTED or LEFT_OUT of this file"
    specs = [RESOURCES.get(name) or LINKS[name] for name in loads.EXPORTED]
    specs += [spec.children.spec for spec in specs if spec.children]
    exported = {spec.model.__name__ for spec in specs}
    assert exported == all_tables - LEFT_OUT, (
        f"{exported ^ (all_tables - LEFT_OUT)}: EXPORTED of agentmem_site/services/loads.py and "
        "that of this file differ"
    )


def export(folder, slug="acme", **options):
    out = io.StringIO()
    call_command("export_organization", slug, str(folder), json=True, stdout=out, **options)
    return json.loads(out.getvalue())


def restore(folder, slug="acme"):
    out = io.StringIO()
    call_command("import_organization", slug, str(folder), json=True, stdout=out)
    return {r["resource"]: r for r in map(json.loads, out.getvalue().splitlines())}


def table(organization, model, *, leave_out=()):
    """Every row as text from the database, by id."""
    with tenant(organization), connection.cursor() as cursor:
        cursor.execute(
            f"SELECT to_jsonb(t) - %s::text[] FROM {model._meta.db_table} t "
            "WHERE organization_id = %s ORDER BY id",
            [list({*NOT_EXPORTED, *leave_out}), organization.pk],
        )
        return [json.loads(row, parse_float=str) for (row,) in cursor.fetchall()]


def everything(organization, **options):
    return {model.__name__: table(organization, model, **options) for model in EXPORTED}


def empty(organization):
    """Removes all rows of the organization."""
    with tenant(organization):
        for model in [MemoryHistory, CachedVector, *reversed(EXPORTED)]:
            rows = model.objects.for_organization(organization)
            rows._raw_delete(rows.db)


def populate(organization):
    """Rows of every kind: with keys and without, with all columns set and with none."""
    user = make_user(
        organization, name='Ünï "\\ \u2028 \U0001f600', email="a@b.example", metadata={"n": 1.50}
    )
    nobody = make_user(organization, external_id=None)
    agent = make_agent(
        organization,
        llm_config={"temperature": 0.1, "large": 12345678901234567890},
        message_ids=["a", None],
        last_active_at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    )
    plain = make_agent(organization, external_id=None)
    block = make_block(organization, user=user, value="a\r\nb\t", limit=5)
    other = make_block(organization, external_id="block", is_template=True)
    tool = make_tool(organization, tags=["a", ""], json_schema={"type": "object"})
    session = make_session(organization, agent=agent, user=user, summary={"content": "Short"})
    make_session(organization, user=nobody, summary=None)
    for number in range(5):
        run = make_run(
            session,
            input_tokens=number,
            content="x" * 100,
            metrics={"time": 0.25},
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
    make_message(organization, session=session, run=run, content=[1, {"a": None}], name="Ann")
    make_message(organization, agent=plain, user=nobody, external_id="m 1")
    vector = HalfVector([random.Random(7).uniform(-1, 1) for _ in range(EMBEDDING_DIM)])
    kept = make_memory(
        organization,
        user=user,
        agent=agent,
        session_id="gone",
        speaker="Ann",
        context="Well?",
        content="  Likes tea.\n",
        importance=0.1,
        score=-2.5,
        embedding=vector,
        embedding_model="test",
        expires_at=datetime(2190, 1, 1, tzinfo=UTC),
        created_at=datetime(2020, 5, 5, 5, 5, 5, 5, UTC),
    )
    make_memory(organization, external_id="fact")
    failed = make_memory(organization, user=nobody)
    with tenant(organization):
        attach_block(agent, block, organization=organization, actor=TESTER)
        attach_tool(agent, tool, organization=organization, actor=TESTER)
        by = {"organization": organization, "actor": TESTER}
        memories.update(kept, values={"importance": 0.3}, **by)
        blocks.update(other, values={"value": "Anew."}, **by)
        own = Memory.objects.for_organization(organization)
        own.filter(pk=kept.pk).update(access_count=7, last_accessed=kept.created_at)
        own.filter(pk=failed.pk).update(
            embedding_state="failed", embedding_attempts=5, embedding_error="no", language="german"
        )
    return user, agent, session


def test_an_export_is_restored_as_the_same_rows(acme, tmp_path):
    populate(acme)
    before = everything(acme)
    missing = [name for name, rows in before.items() if not rows]
    assert not missing, f"populate() makes no row of {missing}"
    manifest = export(tmp_path / "out", vectors=True)
    assert manifest["encoders"] == {"test": 1}
    empty(acme)
    first = restore(tmp_path / "out")
    assert everything(acme) == before
    assert first["memories"]["inserted"] == 3
    assert first["sessions"]["runs"]["inserted"] == 5
    again = restore(tmp_path / "out")
    assert [r["inserted"] + r["updated"] for r in again.values()] == [0] * len(loads.EXPORTED)
    assert again["sessions"]["runs"]["unchanged"] == 5
    assert everything(acme) == before


def test_an_export_goes_into_another_organization_once_its_own_is_purged(acme, globex, tmp_path):
    populate(acme)
    before = everything(acme)
    export(tmp_path / "out", vectors=True)
    with pytest.raises(CommandError, match="the id of a row of another organization"):
        restore(tmp_path / "out", "globex")
    assert not any(everything(globex).values())
    empty(acme)
    restore(tmp_path / "out", "globex")
    assert everything(globex) == before
    with tenant(globex):
        versions = MemoryHistory.objects.for_organization(globex).order_by("version")
        assert list(versions.values_list("change_type", flat=True)) == ["created"] * 3


def test_without_vectors_memories_wait_to_be_embedded(acme, tmp_path):
    populate(acme)
    of_embedding = [f.name for f in Memory._meta.fields if f.name.startswith("embedding")]
    before = everything(acme, leave_out=of_embedding)
    manifest = export(tmp_path / "out")
    assert "encoders" not in manifest
    with_vector = table(acme, Memory)
    restore(tmp_path / "out")  # existing vectors stay
    assert table(acme, Memory) == with_vector
    empty(acme)
    restore(tmp_path / "out")
    assert everything(acme, leave_out=of_embedding) == before
    with tenant(acme):
        states = Memory.objects.for_organization(acme).values_list("embedding_state", "embedding")
        assert set(states) == {("pending", None)}


def test_deleted_rows_and_rows_below_them_are_exported_only_on_request(acme, tmp_path):
    user, _, session = populate(acme)
    make_message(acme, user=user, session=make_session(acme, session_id="kept"))
    by = {"organization": acme, "actor": TESTER}
    with tenant(acme):
        # Live rows whose parent is in the trash: a load may have created them.
        sessions.delete(Session.objects.for_organization(acme).filter(pk=session.pk), **by)
        Message.objects.for_organization(acme).update(is_deleted=False, deleted_at=None)
        users.delete(User.objects.for_organization(acme).filter(pk=user.pk), **by)
    before = everything(acme)
    full = export(tmp_path / "full", vectors=True, deleted=True)["files"]
    live = export(tmp_path / "live", vectors=True)["files"]
    assert (full["users.jsonl"]["rows"], live["users.jsonl"]["rows"]) == (2, 1)
    assert (full["sessions.jsonl"]["runs"], live["sessions.jsonl"]["runs"]) == (5, 0)
    empty(acme)
    restore(tmp_path / "live")
    by_text = {m["text"]: m for m in table(acme, Message)}
    assert len(table(acme, Message)) == 2  # not the one of the deleted session
    assert {m["user_id"] for m in by_text.values()} != {str(user.pk)}
    assert table(acme, User)[0]["is_deleted"] is False
    empty(acme)
    restore(tmp_path / "full")
    assert everything(acme) == before


def test_a_long_session_is_on_several_lines(acme, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "_MAX_RUN_BYTES", 900)
    session = make_session(acme)
    for number in range(9):
        make_run(session, content="x" * 100, run_id=f"r{number}")
    make_session(acme)
    before = everything(acme)
    described = export(tmp_path / "out")["files"]["sessions.jsonl"]
    assert described["lines"] > 3
    assert (described["rows"], described["runs"]) == (2, 9)
    empty(acme)
    report = restore(tmp_path / "out")["sessions"]
    assert (report["inserted"], report["runs"]["inserted"]) == (2, 9)
    assert everything(acme) == before


def test_the_manifest_describes_each_file(acme, tmp_path):
    populate(acme)
    manifest = export(tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {*manifest["files"], "manifest.json"}
    for name, described in manifest["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert described["sha256"] == hashlib.sha256(data).hexdigest()
        assert described["lines"] == len(data.splitlines())
    assert manifest["organization"] == {"name": "Acme", "slug": "acme"}
    assert manifest["migrations"].keys() == {"accounts", "memories", "agent_sessions"}
    with tenant(acme):
        event = AuditEvent.objects.for_organization(acme).get(action="exported")
    assert event.changes["users"] == 2


def test_nothing_of_another_organization_is_exported(acme, globex, tmp_path):
    populate(globex)
    manifest = export(tmp_path / "out")
    assert {f["rows"] for f in manifest["files"].values()} == {0}


def test_all_files_are_of_one_snapshot(acme, tmp_path, monkeypatch):
    populate(acme)
    written = exports._write

    def written_while_others_write(file, lines):
        if file.name == "agents.jsonl":
            other = connection.copy()
            with other.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute(f"SET LOCAL app.organization_id = '{acme.pk}'")
                cursor.execute(
                    "UPDATE memories_agent SET name = 'later' WHERE organization_id = %s", [acme.pk]
                )
                cursor.execute("COMMIT")
            other.close()
        return written(file, lines)

    monkeypatch.setattr(exports, "_write", written_while_others_write)
    export(tmp_path / "out")
    assert "later" not in (tmp_path / "out" / "agents.jsonl").read_text()
    assert {row["name"] for row in table(acme, Agent)} == {"later"}


def test_a_directory_that_is_not_empty_is_refused(acme, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(CommandError, match="is not empty") as refused:
        export(tmp_path)
    assert refused.value.returncode == 2
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(CommandError, match="no organization 'nobody'"):
        export(tmp_path / "out", "nobody")


def test_an_export_that_fails_leaves_nothing(acme, tmp_path, monkeypatch):
    def full(line):
        raise OSError(28, "No space left on device")

    populate(acme)
    monkeypatch.setattr(exports, "encode", full)
    with pytest.raises(CommandError, match="No space left") as refused:
        export(tmp_path / "out")
    assert refused.value.returncode == 73
    assert list((tmp_path / "out").iterdir()) == []


def test_an_import_names_users_erased_since_the_export(acme, tmp_path):
    user, *_ = populate(acme)
    export(tmp_path / "out")
    call_command(
        "erase_user", user.external_id, organization="acme", yes=True, stdout=io.StringIO()
    )
    stderr = io.StringIO()
    call_command(
        "import_organization", "acme", str(tmp_path / "out"), stdout=io.StringIO(), stderr=stderr
    )
    assert stderr.getvalue().startswith("This import restored users who had been erased")
    assert stderr.getvalue().endswith(f"again: {user.pk}\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out / "manifest.json").unlink(), "incomplete one"),
        (lambda out: (out / "manifest.json").write_text("{"), "cannot be read as a manifest"),
        (lambda out: (out / "tools.jsonl").unlink(), "tools.jsonl is missing"),
        (lambda out: (out / "tools.jsonl").write_text("\n"), "has changed since the export"),
        (
            lambda out: (out / "manifest.json").write_text('{"format": 2, "files": {}}'),
            "format 2; this version reads 1",
        ),
    ],
)
def test_an_incomplete_export_is_not_imported(acme, tmp_path, spoil, message):
    make_user(acme)
    export(tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(CommandError, match=message) as refused:
        restore(tmp_path / "out")
    assert refused.value.returncode == 2


def test_rows_changed_since_the_export_are_restored_and_counted(acme, tmp_path):
    _, agent, session = populate(acme)
    before = everything(acme)
    export(tmp_path / "out", vectors=True)
    by = {"organization": acme, "actor": TESTER}
    with tenant(acme):
        agents.update(agent, values={"name": "Other"}, **by)
        memory = Memory.objects.for_organization(acme).get(external_id="fact")
        memories.update(memory, values={"content": "Other."}, **by)
        memories.delete(Memory.objects.for_organization(acme).filter(session_id="gone"), **by)
        first = Run.objects.for_organization(acme).filter(session=session, position=0)
        runs.purge(first, **by)
    reports = restore(tmp_path / "out")
    counts = {name: (r["inserted"], r["updated"], r["deleted"]) for name, r in reports.items()}
    assert counts["agents"] == (0, 1, 0)
    assert counts["memories"] == (0, 1, 1)  # rows in the trash stay there
    assert reports["sessions"]["runs"]["inserted"] == 1
    after = everything(acme)
    assert [m for m in after["Memory"] if not m["is_deleted"]] == [
        m for m in before["Memory"] if m["session_id"] != "gone"
    ]
    assert {**after, "Memory": 0} == {**before, "Memory": 0}
    with tenant(acme):
        history = MemoryHistory.objects.for_organization(acme).filter(memory=memory)
        changes = list(history.order_by("created_at").values_list("change_type", flat=True))
    assert changes == ["created", "updated", "updated"]


# -- --preserve-ids --------------------------------------------------------------------------------


def test_ids_are_accepted_only_in_an_export(acme, tmp_path):
    row = {"id": str(uuid4()), "external_id": "ann"}
    with pytest.raises(CommandError, match="line 1: id: Unknown field"):
        load(tmp_path, "users", [row])
    load(tmp_path, "users", [row], preserve_ids=True)
    assert table(acme, User)[0]["id"] == row["id"]
    with pytest.raises(CommandError, match="line 1: id: Missing"):
        load(tmp_path, "users", [{"external_id": "bob"}], preserve_ids=True)
    with pytest.raises(CommandError, match="agent-tools come from an export: add --preserve-ids"):
        load(tmp_path, "agent-tools", [])


def test_an_id_of_another_row_is_refused_by_line(acme, globex, tmp_path):
    ann, theirs = make_user(acme, external_id="ann"), make_user(globex)
    fine = {"id": str(uuid4()), "external_id": "fine"}
    refusals = {
        f"line 2: id: {ann.pk} is the id of a row with another external_id": {
            "id": str(ann.pk),
            "external_id": "bob",
        },
        "line 2: id: The row with this external_id has another id than 0{8}-": {
            "id": f"00000000{str(uuid4())[8:]}",
            "external_id": "ann",
        },
        f"line 2: id: {theirs.pk} is the id of a row of another organization": {
            "id": str(theirs.pk),
            "external_id": "new",
        },
    }
    for message, row in refusals.items():
        with pytest.raises(CommandError, match=message) as refused:
            load(tmp_path, "users", [fine, row], preserve_ids=True)
        assert refused.value.returncode == 65
    twice = [{**fine, "id": str(uuid4())}, {**fine, "id": str(uuid4())}]
    with pytest.raises(CommandError, match="Another line with this external_id has another"):
        load(tmp_path, "users", twice, preserve_ids=True)
    assert [u["external_id"] for u in table(acme, User)] == ["ann"]


def test_an_existing_run_with_another_id_is_refused(acme, tmp_path):
    session = make_session(acme, session_id="s")
    make_run(session, run_id="r")
    row = {"id": str(session.pk), "session_id": "s"}
    row["runs"] = [{"id": str(uuid4()), "run_id": "r"}]
    with pytest.raises(
        CommandError, match="The row with this session_id and run_id has another id"
    ):
        load(tmp_path, "sessions", [row], preserve_ids=True)


def test_references_of_an_export_must_exist(acme, tmp_path):
    row = {"id": str(uuid4()), "content": "x", "user_id": str(uuid4())}
    with pytest.raises(CommandError, match="line 1: user_id: There is no user"):
        load(tmp_path, "memories", [row], preserve_ids=True)
    # A key that looks like another user's id does not conflict with it.
    user = make_user(acme)
    make_user(acme, external_id=str(user.pk))
    load(tmp_path, "memories", [{**row, "user_id": str(user.pk)}], preserve_ids=True)
    assert table(acme, Memory)[0]["user_id"] == str(user.pk)


def test_an_embedding_state_that_contradicts_the_vector_is_refused(acme, tmp_path):
    row = {"id": str(uuid4()), "content": "x", "embedding_state": "ready"}
    with pytest.raises(CommandError, match="line 1: embedding_state: It is `ready` with"):
        load(tmp_path, "memories", [row], preserve_ids=True)
