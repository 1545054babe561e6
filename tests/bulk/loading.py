"""`manage.py bulk_upsert` for tests: takes rows, returns the report."""

import io
import json
from pathlib import Path
from typing import Any

from django.core.management import call_command


def load(folder: Path, resource: str, rows: list[Any], **options: Any) -> dict[str, Any]:
    """The report of a load into acme. Raises: CommandError."""
    file = folder / f"{resource}.jsonl"
    file.write_bytes(b"".join(_line(row) for row in rows))
    return load_file(file, resource, **options)


def load_file(file: Path, resource: str, **options: Any) -> dict[str, Any]:
    out = io.StringIO()
    options = {"organization": "acme", **options}
    call_command("bulk_upsert", resource, str(file), json=True, stdout=out, **options)
    return json.loads(out.getvalue())


def _line(row: Any) -> bytes:
    data = row if isinstance(row, bytes) else json.dumps(row).encode()
    return data + b"\n"
