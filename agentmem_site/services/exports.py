"""Exports: an organization as files of lines that `bulk_upsert --preserve-ids` restores.

Members, keys, the audit log and the memories' earlier versions are not exported.
"""

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Count
from django.utils import timezone
from msgspec import Raw

from accounts.actors import Actor
from accounts.models import Organization
from accounts.services.audit import record_event
from accounts.tenancy import snapshot, tenant
from agentmem_site.bulk.export import columns_of, encode, read, without_trash
from agentmem_site.bulk.spec import LoadSpec, restoring
from agentmem_site.private import make_folder, open_private
from agentmem_site.services.loads import EXPORTED, LINKS, RESOURCES
from memories.models import Memory

FORMAT = 1
MANIFEST = "manifest.json"
FILES = {resource: f"{resource}.jsonl" for resource in EXPORTED}
_EMBEDDING_COLUMNS = (
    "embedding",
    "embedding_model",
    "embedding_state",
    "embedding_attempts",
    "embedding_error",
)
_APPS = ("accounts", "memories", "agent_sessions")
_MAX_RUN_BYTES = 1024 * 1024  # per line of a session; further runs are on more lines of it

Manifest = dict[str, Any]


class NotExported(Exception):
    """The export cannot be written to this folder."""


def write_export(
    folder: Path,
    *,
    organization: Organization,
    actor: Actor,
    with_vectors: bool,
    with_deleted: bool,
    on_file: Callable[[str, int], None] = lambda name, rows: None,
) -> Manifest:
    """Writes one file per resource, all from one snapshot, and the manifest last.

    Raises: NotExported, OSError; then nothing is left in the folder.
    """
    make_folder(folder)
    if any(folder.iterdir()):
        raise NotExported(f"{folder} is not empty: choose an empty or a new directory.")
    manifest: Manifest = {
        "format": FORMAT,
        "migrations": _migrations(),
        "organization": {"name": organization.name, "slug": organization.slug},
        "taken_at": timezone.now().isoformat(),
        "vectors": with_vectors,
        "deleted": with_deleted,
        "files": {},
    }
    try:
        with snapshot(organization):
            if with_vectors:
                manifest["encoders"] = _encoders(organization)
            for resource, name in FILES.items():
                spec = restoring({**RESOURCES, **LINKS}[resource])
                with closing(_lines(spec, organization, with_vectors, with_deleted)) as lines:
                    entry = _write(folder / name, lines)
                manifest["files"][name] = {"resource": resource, **entry}
                on_file(resource, entry["rows"])
        _write_whole(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    except BaseException:
        for file in folder.iterdir():  # the folder was empty: all files are ours
            file.unlink()
        raise
    with tenant(organization):
        record_event(
            organization=organization,
            actor=actor,
            action="exported",
            resource_type="organization",
            resource_id=organization.pk,
            changes={f["resource"]: f["rows"] for f in manifest["files"].values()},
        )
    return manifest


def _migrations() -> dict[str, str]:
    """App -> its newest migration, which determines the shape of its tables."""
    applied = MigrationRecorder(connection).applied_migrations()
    return {app: name for app, name in sorted(applied) if app in _APPS}


def _encoders(organization: Organization) -> dict[str, int]:
    """Encoder -> its number of vectors."""
    ready = Memory.objects.for_organization(organization).filter(embedding__isnull=False)
    counted = ready.order_by().values_list("embedding_model").annotate(Count("pk"))
    return dict(counted)


def _lines(
    spec: LoadSpec, organization: Organization, with_vectors: bool, with_deleted: bool
) -> Generator[tuple[dict[str, Any], bool], None, None]:
    """(line, whether it is its row's first), in the order of the ids."""
    # Cursors are closed explicitly. If the garbage collector closed a server-side cursor during a
    # statement of the same connection, it would deadlock with itself.
    with ExitStack() as cursors:
        rows, columns = _select(spec, organization, with_vectors, with_deleted)
        lines = cursors.enter_context(closing(read(rows.order_by("pk"), columns)))
        if spec.children is None:
            yield from ((line, True) for line in lines)
            return
        child = spec.children.spec
        run_rows, run_columns = _select(child, organization, with_vectors, with_deleted)
        parent = child.parent_column
        run_rows = run_rows.order_by(parent, "position", "pk")
        runs = cursors.enter_context(closing(read(run_rows, {parent: parent, **run_columns})))
        groups = groupby(runs, key=itemgetter(parent))
        group = next(groups, None)
        for line in lines:
            has_runs = group is not None and group[0] == line["id"]
            own: Iterable[Any] = group[1] if group and has_runs else ()
            is_first = True
            for part in _parts({n: v for n, v in run.items() if n != parent} for run in own):
                yield {**line, spec.children.source: part}, is_first
                is_first = False
            if has_runs:
                group = next(groups, None)


def _parts(runs: Iterable[dict[str, Any]]) -> Iterator[list[Raw]]:
    """The runs in lists that fit on a line; one empty list if there are none."""
    part, size = list[Raw](), 0
    for run in map(encode, runs):
        if part and size + len(run) > _MAX_RUN_BYTES:
            yield part
            part, size = [], 0
        part.append(Raw(run.rstrip()))
        size += len(run)
    yield part


def _select(
    spec: LoadSpec, organization: Organization, with_vectors: bool, with_deleted: bool
) -> tuple[Any, Any]:
    columns = columns_of(spec, leave_out=() if with_vectors else _EMBEDDING_COLUMNS)
    model: Any = spec.model
    rows = model.objects.for_organization(organization)
    if with_deleted:
        return rows, columns
    is_live, columns = without_trash(spec, columns)
    return rows.filter(is_live), columns


def _write(file: Path, lines: Iterable[tuple[dict[str, Any], bool]]) -> dict[str, Any]:
    """The file's rows, lines and SHA-256; for sessions the runs too."""
    part, digest = file.with_suffix(".part"), hashlib.sha256()
    counts = {"rows": 0, "lines": 0}
    with open_private(part, "xb") as out:
        for line, is_new in lines:
            data = encode(line)
            digest.update(data)
            out.write(data)
            counts["lines"] += 1
            counts["rows"] += is_new
            if "runs" in line:
                counts["runs"] = counts.get("runs", 0) + len(line["runs"])
        out.flush()
        os.fsync(out.fileno())
    part.rename(file)
    return {**counts, "sha256": digest.hexdigest()}


def _write_whole(file: Path, data: bytes) -> None:
    part = file.with_suffix(".part")
    with open_private(part, "xb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    part.rename(file)


class NotAnExport(Exception):
    """The directory holds no complete export."""


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete export, whose files are all unchanged.

    Raises: NotAnExport, OSError.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise NotAnExport(f"{file} is missing: this is not an export, or an incomplete one.")
    try:
        manifest: Manifest = json.loads(file.read_bytes())
        version, files = manifest["format"], manifest["files"]
        named = {name: entry["sha256"] for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAnExport(f"{file} cannot be read as a manifest.") from error
    if version != FORMAT:
        raise NotAnExport(f"{file} has format {version}; this version reads {FORMAT}.")
    for file in map(folder.joinpath, FILES.values()):
        if file.name not in named or not file.is_file():
            raise NotAnExport(f"{file} is missing.")
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != named[file.name]:
                raise NotAnExport(f"{file} has changed since the export (SHA-256).")
    return manifest
