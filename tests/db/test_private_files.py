"""Files are private to their owner, whatever the umask and whatever existed before."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from agentmem_site.management.commands import quickstart
from agentmem_site.private import make_folder, open_private
from tests.bulk.loading import load
from tests.makers import make_memory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request):
    kept = os.umask(request.param)
    yield request.param
    os.umask(kept)


def mode(path):
    return oct(path.stat().st_mode & 0o7777)


def modes(folder):
    return {path.name: mode(path) for path in folder.iterdir()}


@pytest.mark.parametrize("how", ["xb", "ab", "wb"])
def test_a_file_is_private_from_its_first_byte(umask, tmp_path, how):
    with open_private(tmp_path / "file", how) as file:
        assert mode(tmp_path / "file") == "0o600"
        file.write(b"words")


@pytest.mark.parametrize("how", ["ab", "wb"])
def test_an_existing_file_becomes_private(umask, tmp_path, how):
    (tmp_path / "file").write_text("words")
    (tmp_path / "file").chmod(0o644)
    with open_private(tmp_path / "file", how):
        assert mode(tmp_path / "file") == "0o600"


def test_pipes_and_devices_keep_their_mode(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o644)
    (tmp_path / "pipe").chmod(0o644)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with open_private(tmp_path / "pipe", "ab"):
        assert mode(tmp_path / "pipe") == "0o644"
    os.close(reader)


@pytest.mark.skipif(os.geteuid() != 0, reason="a trap for root")
def test_the_mode_of_a_file_with_hard_links_stays(tmp_path):
    (tmp_path / "known").write_text("everybody reads this")
    (tmp_path / "known").chmod(0o644)
    (tmp_path / "trap").hardlink_to(tmp_path / "known")
    with open_private(tmp_path / "trap", "ab"):
        assert mode(tmp_path / "known") == "0o644"


def test_new_folders_are_private(umask, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs").chmod(0o750)
    make_folder(tmp_path / "theirs" / "a" / "b")
    make_folder(tmp_path / "theirs" / "a" / "b")
    for name, wanted in (("theirs", "0o750"), ("theirs/a", "0o700"), ("theirs/a/b", "0o700")):
        assert mode(tmp_path / name) == wanted
    with pytest.raises(FileExistsError):
        (tmp_path / "file").touch()
        make_folder(tmp_path / "file")


@pytest.mark.django_db(transaction=True)
def test_an_export_is_private(umask, acme, tmp_path):
    make_memory(acme, content="words")
    call_command("export_organization", "acme", tmp_path / "exports" / "acme", json=True)
    assert mode(tmp_path / "exports") == mode(tmp_path / "exports" / "acme") == "0o700"
    written = modes(tmp_path / "exports" / "acme")
    assert len(written) > 5
    assert set(written.values()) == {"0o600"}


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.django_db(transaction=True)
def test_rejected_lines_are_private(umask, acme, tmp_path, was_there):
    rejects = tmp_path / "rejects.jsonl"
    if was_there:
        rejects.touch()
        rejects.chmod(0o666)
    with pytest.raises(CommandError, match="1 lines are rejected"):
        load(tmp_path, "users", [{"nmae": "Ann"}], on_error="skip", rejects=rejects)
    assert rejects.stat().st_size > 0
    assert mode(rejects) == "0o600"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_the_data_directory_is_closed_to_others(umask, tmp_path):
    folder = tmp_path / "parent" / "var"
    code = f"import os; os.umask({umask}); import agentmem_site.settings"
    env = {**os.environ, "AGENTMEM_DATA_DIR": str(folder), "AGENTMEM_SECRET_KEY": ""}
    env = {name: value for name, value in env.items() if not name.startswith("DATABASE_")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    assert mode(folder.parent) == mode(folder) == "0o711"
    assert mode(folder / "secret_key") == "0o600"
    assert mode(folder / "postgres-18") == "0o711"
    assert mode(folder / "postgres-18" / "secrets.json") == "0o600"


def test_sample_files_are_private(umask, tmp_path, settings, monkeypatch):
    class Loaded(Exception):
        pass

    def loaded(*args, **options):
        raise Loaded

    settings.DATA_DIR = tmp_path
    monkeypatch.setattr(quickstart, "call_command", loaded)
    with pytest.raises(Loaded):
        quickstart.Command()._load_sample(None)
    assert mode(tmp_path / "sample") == "0o700"
    assert modes(tmp_path / "sample") == {"users.jsonl": "0o600"}


def writers(tree):
    """Calls that create or write a file directly."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if called in ("write_text", "write_bytes", "touch", "mkdir", "makedirs"):
            yield node
        given = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
        modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if called == "open" and any(set(mode) & set("wax+") for mode in modes):
            yield node
        if called == "open" and "O_CREAT" in ast.unparse(node):
            yield node


def test_nothing_else_opens_a_file_to_write():
    """Every file is written through `private`; `tempfile` is private by itself."""
    apart = {
        "agentmem_site/private.py",
        "agentmem_site/embedded/files.py",  # pgdata/ of the server's account: 0700 too
        "memories/embeddings/artefacts/build.py",  # builds the encoders' files, for developers
    }
    writes = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("agentmem_site", "accounts", "memories", "sessions")
        for path in (ROOT / package).rglob("*.py")
        if str(path.relative_to(ROOT)) not in apart
        for node in writers(ast.parse(path.read_text()))
    ]
    assert writes == []
    assert list(writers(ast.parse("Path('x').open('wb')")))
