"""The documentation agrees with the code: the index, the links, the map, the checks."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAPERS = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


def links(paper: Path) -> set[Path]:
    return {(paper.parent / target).resolve() for target in LINK.findall(paper.read_text())}


def test_the_index_names_every_paper():
    assert [p for p in PAPERS if p not in {*links(DOCS / "README.md"), DOCS / "README.md"}] == []


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: str(paper.relative_to(ROOT)))
def test_links_have_targets(paper):
    assert [target for target in links(paper) if not target.exists()] == []


def test_the_map_names_what_exists():
    text = (DOCS / "architecture.md").read_text()
    paths = re.findall(r"`((?:agentmem_site|accounts|memories|sessions|tests)/[\w/.]+)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_map_names_every_room_of_the_site():
    text = (DOCS / "architecture.md").read_text()
    rooms = [
        f"agentmem_site/{path.name}/"
        for path in sorted((ROOT / "agentmem_site").iterdir())
        if (path / "__init__.py").exists()
    ]
    assert "agentmem_site/db/" in rooms
    assert [room for room in rooms if f"`{room}" not in text] == []


def test_make_alone_lists_the_targets():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {name for name in phony[1].split() if not name.startswith("lint-")}
    assert {"run", "dev", "test", "lint", "coverage"} <= targets
    assert set(re.findall(r"^make (\S+) ", listed, re.MULTILINE)) == targets


def test_a_commit_is_checked_by_what_lint_runs():
    lint = re.search(r"^lint: (.*?) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert [hook["entry"] for hook in hooks] == [f"make {part}" for part in lint[1].split()]
    assert {hook["language"] for hook in hooks} == {"system"}


def test_ci_makes_targets_that_exist():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert jobs["ci"]["steps"][-1]["run"] == ".ci/run ${{ matrix.targets }}"
    created = " ".join(jobs["ci"]["strategy"]["matrix"]["targets"]).split()
    assert {"lint", "test", "coverage"} <= set(created)
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in created if f"\n{target}: " not in makefile] == []
