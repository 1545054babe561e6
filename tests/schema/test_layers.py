"""Imports point one way: the ground (private, db, embedded, bulk) <- accounts <- memories <-
sessions <- the roof. Inside an app: errors <- querysets <- models <- access <- services <- one of
the doors. Inside the roof: services <- api, console, management, serving."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agentmem_site", "accounts", "memories", "sessions")
FLOORS = [
    "agentmem_site.private",
    "agentmem_site.db",
    "agentmem_site.embedded",
    "agentmem_site.bulk",
    "accounts",
    "memories",
    "sessions",
    "agentmem_site.services",
    "roof",
]

# Inside an app, from below. Modules that are not named here count as services: a model cannot
# import them, a door can.
LAYERS = [
    {"errors", "roles", "words"},  # these know no table
    {"actors", "organization_settings", "tenancy"},
    {"querysets"},
    {"models"},
    {"access", "bulk", "embeddings", "search"},  # these read the models and change no rows
    {"services"},
    {"api", "admin", "management", "apps"},
]
SERVICES = 5
DOORS = 6


def is_comment_with_reason(comment: str) -> bool:
    words = comment.lstrip("# ").split()
    if words[:1] == ["noqa:"]:
        words = words[2:]
    return len(words) >= 2


class Module:
    """A source file: its module and its imports."""

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        self.file = path.relative_to(root)
        parts = self.file.with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        self.tree = ast.parse(text)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}

    def imports(self) -> Iterator[tuple[int, str, bool]]:
        """(line, module of ours, whether a function imports it), including imports for types."""
        yield from self._imports(self.tree, inside=False)

    def _imports(self, node: ast.AST, inside: bool) -> Iterator[tuple[int, str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                yield from ((child.lineno, f"{base}.{alias.name}", inside) for alias in child.names)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from self._imports(child, inside or is_function)

    def has_reason(self, line: int) -> bool:
        return any(is_comment_with_reason(self.comments.get(n, "")) for n in (line, line - 1))


def floor(name: str) -> int:
    for number, package in enumerate(FLOORS):
        if name == package or name.startswith(f"{package}."):
            return number
    return len(FLOORS) - 1  # agentmem_site.*


def layer(name: str) -> tuple[int, str]:
    part = name.split(".")[1] if "." in name else ""
    number = next((n for n, names in enumerate(LAYERS) if part in names), SERVICES)
    return number, part


def is_in_app(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in PACKAGES[1:]


def wrong_ways(module: Module) -> Iterator[str]:
    for line, target, inside in module.imports():
        if inside and not module.has_reason(line):
            yield f"{module.file}:{line} imports {target} inside a function, and says not why"
        if target.split(".")[0] not in PACKAGES:
            continue
        if floor(target) > floor(module.name):
            yield f"{module.file}:{line} imports {target}, which stands above it"
        elif is_in_app(module.name) and is_in_app(target):
            own, own_part = layer(module.name)
            other, other_part = layer(target)
            if other > own:
                yield f"{module.file}:{line} imports {target}, a layer above its own"
            elif own == other == DOORS and own_part != other_part:
                yield f"{module.file}:{line} imports {target}, another door"


def sources() -> list[Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return [path for path in files if "migrations" not in path.parts]


def test_imports_point_one_way():
    modules = [Module(path) for path in sources()]
    assert len(modules) > 50
    complaints = [wrong for module in modules for wrong in wrong_ways(module)]
    assert not complaints, "\n".join(["", *complaints])


def test_no_module_imports_the_tests():
    for path in sources():
        assert not [t for _, t, _ in Module(path).imports() if t.split(".")[0] == "tests"], path


def circles(modules: list[Module]) -> list[str]:
    """ "a -> b -> a": the shortest cycle of each module that imports itself through others, in
    functions too."""
    names = {module.name for module in modules}
    needs = {
        module.name: {
            target if target in names else target.rpartition(".")[0]
            for _, target, _ in module.imports()
        }
        & names
        for module in modules
    }

    def cycle(name: str) -> list[str]:
        paths: list[list[str]] = [[name]]
        seen: set[str] = set()
        for path in paths:  # it grows: breadth first
            for other in sorted(needs[path[-1]] - seen):
                if other == name:
                    return [*path, name]
                seen.add(other)
                paths.append([*path, other])
        return []

    cycles: dict[frozenset[str], str] = {}
    for path in filter(None, map(cycle, sorted(needs))):
        cycles.setdefault(frozenset(path), " -> ".join(path))
    return list(cycles.values())


def test_there_are_no_import_cycles():
    complaints = circles([Module(path) for path in sources()])
    assert not complaints, "\n".join(["", *complaints])


@pytest.mark.parametrize(
    "form",
    [
        "from accounts.{} import x",
        "from accounts import {}",
        "import accounts.{}",
        "if TYPE_CHECKING:\n    from accounts.{} import x",
        "def f():\n    from accounts.{} import x  # heavy",
    ],
)
def test_an_import_cycle_is_noticed(tmp_path, form):
    (tmp_path / "accounts").mkdir()
    for name, other in [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]:
        (tmp_path / "accounts" / f"{name}.py").write_text(form.format(other))
    modules = [Module(path, tmp_path) for path in sorted(tmp_path.rglob("*.py"))]
    assert circles(modules) == ["accounts.a -> accounts.b -> accounts.c -> accounts.a"]


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("accounts/models.py", "from memories.models import Memory", "stands above it"),
        (
            "accounts/models.py",
            "from agentmem_site.services import loads",
            "stands above it",
        ),
        ("agentmem_site/db/base.py", "import accounts.models", "stands above it"),
        ("agentmem_site/bulk/spec.py", "from accounts import models", "stands above it"),
        ("memories/models.py", "from memories.services import agents", "a layer above"),
        ("memories/models.py", "from accounts.services.keys import issue_key", "a layer above"),
        ("memories/querysets.py", "from memories.models import Memory", "a layer above"),
        ("memories/services/agents.py", "from memories.api import views", "a layer above"),
        ("memories/api/views.py", "from memories.admin import MemoryAdmin", "another door"),
        ("sessions/models.py", "def f():\n    import numpy", "says not why"),
        ("sessions/models.py", "def f():\n    import numpy  # noqa: PLC0415", "says not why"),
        ("sessions/models.py", "def f():\n    import numpy  # loads 30 MB", None),
        ("accounts/models.py", "if TYPE_CHECKING:\n    from memories.models import x", "above"),
        ("agentmem_site/services/loads.py", "from agentmem_site.api import bulk", "stands above"),
        ("sessions/api/views.py", "from sessions.services.conversations import runs", None),
        ("agentmem_site/urls.py", "from sessions.api import views", None),
    ],
)
def test_a_wrong_import_is_noticed(tmp_path, file, text, complaint):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = list(wrong_ways(Module(path, tmp_path)))
    assert len(found) == (complaint is not None)
    assert complaint is None or complaint in found[0]
