"""Kills loads at random moments, and repeats the same command until it succeeds.

The real command runs in its own process; the harness's own embedded PostgreSQL runs behind a proxy,
on a small disk if one can be mounted.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg

from agentmem_site.db.ids import uuid7
from agentmem_site.embedded import Server
from tests.bulk.kills.files import File, make_file
from tests.bulk.kills.oracle import Outcome, Range, Row, Tables
from tests.bulk.kills.proxy import Proxy, Trap
from tests.bulk.kills.stored import Stored, read

ROOT = Path(__file__).resolve().parents[3]
DISK_BYTES = 512 * 1024 * 1024  # enough for a cluster; small enough to be filled quickly
PATIENCE_S = 90
WELL = {0, 3}
TEMPORARY = 75
# Exit codes after a signal: 143 and 130, which a shell also returns for a process killed by it.
SIGNALLED = {
    "client KILL": {-signal.SIGKILL},
    "client TERM": {143, -signal.SIGTERM},
    "client INT": {130, -signal.SIGINT},
}


class Fault(AssertionError):
    """Something is lost, doubled or reported wrongly."""


@dataclass
class Figures:
    """The statistics of a run."""

    kinds: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    files: int = 0
    lines: int = 0
    commands: int = 0
    seconds: float = 0

    @property
    def kills(self) -> int:
        return sum(self.kinds.values())

    def __str__(self) -> str:
        def listed(counter: Counter[str]) -> str:
            return ", ".join(f"{name} {number}" for name, number in counter.most_common())

        middle = sum(n for moment, n in self.moments.items() if moment in MID_COMMIT)
        return (
            f"{self.kills} kills, {middle} of them in the middle of a COMMIT "
            f"({listed(self.kinds)}; at {listed(self.moments)}), in "
            f"{self.commands} commands over {self.files} files of {self.lines:,} lines, "
            f"{self.seconds:.0f} s"
        )


@dataclass
class Ended:
    """A command that has ended, and how it was disturbed."""

    code: int
    output: str
    errors: str
    killed: str  # what, at which moment; "" if it was not disturbed
    seconds: float
    may_be_early: bool  # it has not connected

    @property
    def report(self) -> dict[str, Any]:
        for line in reversed(self.output.splitlines()):
            with suppress(ValueError):
                return dict(json.loads(line))
        return {}


class Installation:
    """The harness's own server, behind a proxy that can break connections."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.disk = folder / "data" if _mount(folder / "data") else None
        self._filling = threading.Lock()

    def __enter__(self) -> "Installation":
        unset = {"DATABASE_URL", "DATABASE_OWNER_URL", "DJANGO_SETTINGS_MODULE"}
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment["AGENTMEM_DATA_DIR"] = str(self.data)
        subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "migrate", "--verbosity=0"],
            env=environment,
            check=True,
        )
        (folder,) = self.data.glob("postgres-*")
        self.server = Server(folder, version=int(folder.name.removeprefix("postgres-")))
        given = self.server.connection("agentmem_app")
        self.proxy = Proxy(_socket(given)).__enter__()
        # For direct connections: then a command starts the server if it is not running.
        self.without_door = environment
        self.environment = environment | {
            "DATABASE_URL": f"postgres://{given['USER']}:{given['PASSWORD']}@127.0.0.1:"
            f"{self.proxy.port}/{given['NAME']}",
        }
        self.help = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), "bulk_upsert", "--help"],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        return self

    def can(self, option: str) -> bool:
        return option in self.help

    def __exit__(self, *_: object) -> None:
        self.proxy.__exit__()
        self.free()
        self.server.stop()
        if self.disk:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)

    @property
    def filler(self) -> Path:
        return self.data / "postgres-filler"

    def fill(self) -> None:
        with self._filling, self.filler.open("wb") as file, suppress(OSError):
            while True:
                left = os.statvfs(self.data)
                os.posix_fallocate(file.fileno(), file.tell(), left.f_bavail * left.f_frsize)
                file.seek(0, os.SEEK_END)

    def free(self) -> None:
        with self._filling:  # (the proxy's thread may still be filling it)
            self.filler.unlink(missing_ok=True)

    def postmaster(self) -> int:
        return int((self.server.pgdata / "postmaster.pid").read_text().split()[0])

    def revive(self) -> None:
        self.server.start(timeout_s=PATIENCE_S)

    def empty(self) -> None:
        """Frees space on the small disk."""
        with self.owner() as connection:
            connection.execute("TRUNCATE accounts_organization CASCADE")

    def make_organization(self, slug: str) -> UUID:
        organization = uuid7()
        with self.owner() as connection:
            connection.execute(
                "INSERT INTO accounts_organization "
                "(id, name, slug, settings, created_at, updated_at, is_deleted) "
                "VALUES (%s, %s, %s, '{}', now(), now(), false)",
                [organization, slug, slug],
            )
        return organization

    @contextmanager
    def owner(self) -> Iterator[psycopg.Connection[Any]]:
        given = self.server.connection("agentmem_owner")
        with psycopg.connect(
            dbname=given["NAME"],
            user=given["USER"],
            password=given["PASSWORD"],
            host=given["HOST"],
            port=given["PORT"],
        ) as connection:
            yield connection


class Run:
    """Files and kills, from a seed, until the given number of kills has struck."""

    def __init__(
        self,
        installation: Installation,
        *,
        seed: int,
        say: Callable[[str], None],
        tells_all: bool = False,
        most_faults: int = 1,
        without: Sequence[str] = (),
    ) -> None:
        self.tells_all = tells_all
        self.most_faults = most_faults
        self.without = [*without, *([] if installation.disk else ["disk full"])]
        self.installation = installation
        self.seed = seed
        self.say = say
        self.figures = Figures()
        self.faults: list[str] = []
        self._random = Random(seed)
        self._decks: dict[str, list[str]] = {}

    def deal(self, weights: dict[str, int]) -> str:
        """One of them at random. Even in a short run, each has its share."""
        name = " ".join(weights)
        deck = self._decks.setdefault(name, [])
        if not deck:
            deck += [
                word for word, n in weights.items() for _ in range(n) if word not in self.without
            ]
            self._random.shuffle(deck)
        return deck.pop()

    def until(self, kills: int) -> Figures:
        started = time.monotonic()
        number = 0
        while self.figures.kills < kills and len(self.faults) < self.most_faults:
            world = World(self, Random(f"{self.seed}/{number}"), f"w{self.seed}-{number}")
            try:
                world.live(kills)
            except Fault as fault:
                story = "\n  ".join(world.story)
                self.faults.append(f"seed {self.seed}, world {number}:\n  {story}\n{fault}")
                self.say(self.faults[-1])
            else:
                if self.tells_all:
                    self.say("\n  ".join(world.story))
            number += 1
            self.figures.seconds = time.monotonic() - started
            self.say(str(self.figures))
        return self.figures


class World:
    """An organization, and some files loaded into it one by one, each killed several times."""

    def __init__(self, run: Run, random: Random, slug: str) -> None:
        self.run = run
        self.installation = run.installation
        self.figures = run.figures
        self.random = random
        self.slug = slug
        self.oracle = Tables()
        self.loaded: dict[str, list[Row]] = {}  # by resource: the good lines of its files so far
        self.story: list[str] = []

    def live(self, kills: int) -> None:
        self.installation.revive()
        self.installation.empty()
        self.organization = self.installation.make_organization(self.slug)
        for number in range(self.random.randrange(3, 6)):
            if self.figures.kills < kills:
                self._one_file(number)

    # -- a file ------------------------------------------------------------------------------------

    def _one_file(self, number: int) -> None:
        random = self.random
        resource = random.choice(("sessions", "memories", "messages"))
        self.installation.free()  # after a kill that struck when its command had ended
        with self.installation.owner() as connection:
            self._throw_away(connection)
            self._change(connection)
            before = read(connection, self.organization)
        rows = random.choice((1, 5, 60, 200, 400, 400, 800))
        self.batch_size = random.choice((7, 20, 50, 100)) if rows > 5 else 3
        skips = self.installation.can("--on-error") and random.random() < 0.5
        path = self.installation.folder / f"{self.slug}-{number}.jsonl"
        if random.random() < 0.25:
            path = path.with_suffix(".jsonl.gz")
        file = make_file(
            random,
            self.oracle,
            resource,
            path,
            rows=rows,
            bad_share=random.choice((0.05, 0.3)) if skips else 0,
            before=self.loaded.setdefault(resource, []),
        )
        self.loaded[resource] += [line for line, is_good in file.lines if is_good]
        rejects = path.with_suffix(".rejects") if skips else None
        command = self._command(file, rejects)
        outcome = self.oracle.apply(resource, file.lines)
        # The outcome of loading the file again: the first load may have finished before the kill.
        again = self.oracle.apply(resource, file.lines)
        self.figures.files += 1
        self.figures.lines += outcome.read
        self.story.append(f"{' '.join(command)} ({outcome.read} lines, {outcome.rejected} bad)")
        ended = self._until_well(command, file, planned=random.randrange(1, 9))
        self.installation.revive()
        with self.installation.owner() as connection:
            after = read(connection, self.organization)
        reports = after.ends[len(before.ends) :]
        changed = outcome.changed | (again.changed if len(reports) > 1 else set())
        faults = after.faults(self.oracle) + after.touched(before, changed)
        if self.installation.can("--job"):
            faults += _faults_of_reports(reports, ended.report, outcome, again)
            if resource == "memories":
                faults += _faults_of_versions(reports, before, after)
        faults += _faults_of_rejects(file, rejects, ended) if rejects else []
        if faults:
            raise Fault("\n".join(faults[:20]) + f"\n({len(faults)} in all)")
        path.unlink()

    def _command(self, file: File, rejects: Path | None) -> list[str]:
        random, can = self.random, self.installation.can
        self.has_door = random.random() < 0.85
        self.reads_stdin = can("--job") and random.random() < 0.2
        command = ["bulk_upsert", file.resource, "-" if self.reads_stdin else str(file.path)]
        command += [f"--organization={self.slug}", "--json", f"--batch-size={self.batch_size}"]
        if file.resource == "memories":
            command.append("--embed=later")
        if rejects:
            command += ["--on-error=skip", f"--rejects={rejects}"]
        if self.reads_stdin or (can("--job") and random.random() < 0.2):
            command.append(f"--job={file.path.stem}")
        if can("--workers") and random.random() < 0.3:
            command.append(f"--workers={random.choice((2, 2, 3))}")
        if random.random() < 0.2:
            command.append("--timeout=1")
        if can("--retry") and random.random() < 0.5:
            command.append(f"--retry={random.choice(('aggressive', 'conservative'))}")
        return command

    def _throw_away(self, connection: psycopg.Connection[Any]) -> None:
        """Moves some rows to the trash. Not the sessions that messages name: their lines would be
        bad, and that is another test's subject."""
        named = {
            row.get("session_id") for key, row in self.oracle.rows.items() if key[0] == "message"
        }
        keys = [
            key
            for key in self.oracle.rows
            if key not in self.oracle.deleted
            and not (key[0] == "session" and (key[1] in named or key[1].startswith("of-")))
        ]
        for key in self.random.sample(keys, len(keys) // 20):
            trash = "SET is_deleted = true, deleted_at = now()"
            where = "WHERE organization_id = %s AND"
            if key[0] == "session":
                connection.execute(
                    f"UPDATE agent_sessions_run {trash} {where} session_id = "
                    f"(SELECT id FROM agent_sessions_session {where} session_id = %s)",
                    [self.organization, self.organization, key[1]],
                )
            table, column = {
                "session": ("agent_sessions_session", "session_id"),
                "message": ("agent_sessions_message", "external_id"),
                "memory": ("memories_memory", "external_id"),
            }[key[0]]
            if "content" in key:
                connection.execute(
                    f"UPDATE memories_memory t {trash} WHERE organization_id = %s "
                    "AND hash = %s AND external_id IS NULL AND NOT is_deleted "
                    "AND (SELECT external_id FROM memories_agent WHERE id = t.agent_id) "
                    "IS NOT DISTINCT FROM %s "
                    "AND (SELECT external_id FROM accounts_user WHERE id = t.user_id) "
                    "IS NOT DISTINCT FROM %s",
                    [self.organization, *key[2:]],
                )
            else:
                connection.execute(
                    f"UPDATE {table} {trash} {where} {column} = %s", [self.organization, key[1]]
                )
            self.oracle.delete(key)

    def _change(self, connection: psycopg.Connection[Any]) -> None:
        """Changes some rows as another client would, so that their lines differ again."""
        keys = [k for k in self.oracle.rows if k[0] != "memory" and k not in self.oracle.deleted]
        for key in self.random.sample(keys, len(keys) // 20):
            table, column, key_column = {
                "session": ("agent_sessions_session", "name", "session_id"),
                "message": ("agent_sessions_message", "text", "external_id"),
            }[key[0]]
            connection.execute(
                f"UPDATE {table} SET {column} = 'changed', updated_at = now() "
                f"WHERE organization_id = %s AND {key_column} = %s",
                [self.organization, key[1]],
            )
            self.oracle.rows[key] = self.oracle.rows[key] | {column: "changed"}

    # -- commands ----------------------------------------------------------------------------------

    def _until_well(self, command: list[str], file: File, *, planned: int) -> Ended:
        """Repeats the command until it succeeds."""
        quiet = 0
        while True:
            kill = self._choose(file) if planned else None
            planned -= bool(kill)
            ended = self._run(command, kill, file)
            after = f"{ended.code} after {ended.seconds:.1f} s"
            self.story.append(f"  {ended.killed or 'left alone'}: {after}")
            self._check(ended)
            if ended.code in WELL:
                return ended
            quiet = 0 if ended.killed else quiet + 1
            if quiet > 5:
                raise Fault(f"It does not come to an end: {ended.errors}")
            if quiet:
                time.sleep(0.5)

    def _check(self, ended: Ended) -> None:
        what, _, _ = ended.killed.partition(" at ")
        # (A signal while Python itself starts is reported by Python.)
        if ended.may_be_early and "KeyboardInterrupt" in ended.errors:
            return
        if ended.code not in WELL | SIGNALLED.get(what, {TEMPORARY}):
            raise Fault(f"exit code {ended.code}: {ended.errors[-1500:]}")
        if "Traceback" in ended.errors:
            raise Fault(f"a traceback: {ended.errors[-1500:]}")

    def _run(self, command: list[str], kill: "Kill | None", file: File) -> Ended:
        installation, proxy = self.installation, self.installation.proxy
        if self.has_door:
            installation.revive()
        connections, killed, started = proxy.connections, "", time.monotonic()
        self.figures.commands += 1
        opened = file.path if self.reads_stdin else Path(os.devnull)
        with (
            opened.open("rb") as source,
            subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), *command],
                env=installation.environment if self.has_door else installation.without_door,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
        ):
            timer = kill and kill.set_for(installation, process)
            try:
                output, errors = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Fault(f"it hangs, after {kill}") from None
            finally:
                proxy.trap = None
                if timer:
                    timer.cancel()
        seconds = time.monotonic() - started
        if kill and kill.struck:
            killed = str(kill)
            self.figures.kinds[kill.what] += 1
            self.figures.moments[kill.when] += 1
            kill.recover(installation)
        early = proxy.connections == connections
        return Ended(process.returncode, output, errors, killed, seconds, early)

    def _choose(self, file: File) -> "Kill":
        random = self.random
        what = self.run.deal(KINDS)
        when = self.run.deal(MOMENTS)
        if what == "network blinks" and random.random() < 0.75:
            when = "commit"
        if not self.has_door:
            what, when = random.choice(WITHOUT_DOOR), "time"
        batches = max(1, len(file.lines) // self.batch_size)
        if when not in ("time", "connect"):
            when += " " + random.choice(PLACES)
        return Kill(
            what,
            when,
            nth=random.randint(1, 2 if when == "connect" else batches // 2 + 1),
            after_s=random.uniform(0, 0.5 + 0.02 * batches),
            then=random.choice((0.2, 0.5, 1, 2)),
            recovers_early=random.random() < 0.5,
        )


COUNTS = ("inserted", "updated", "unchanged", "deleted", "duplicates", "rejected")
KINDS = {
    "client KILL": 4,
    "client TERM": 2,
    "client INT": 2,
    "backend terminated": 3,
    "backend KILL": 1,
    "postmaster KILL": 2,
    "postmaster stopped": 1,
    "network cut": 3,
    "network blinks": 4,  # mostly in the middle of a COMMIT: the loader itself must notice
    "network stalled": 2,
    "disk full": 1,
}


WITHOUT_DOOR = ("client KILL", "client TERM", "client INT", "postmaster KILL", "postmaster stopped")
MOMENTS = {"time": 3, "connect": 1, "copy": 3, "commit": 4}
PLACES = ("before", "before", "half", "sent", "sent", "answered", "half answered")
MID_COMMIT = {f"commit {place}" for place in PLACES if place != "before"}


@dataclass
class Kill:
    """How a command is disturbed, and when."""

    what: str
    when: str  # "time", "connect", or a moment and a stage of the proxy
    nth: int
    after_s: float
    then: float  # seconds until the network or the disk works again
    recovers_early: bool  # what was killed comes back while the command still runs
    struck: bool = False

    def __str__(self) -> str:
        at = f"{self.after_s:.2f} s" if self.when == "time" else f"{self.nth}. {self.when}"
        return f"{self.what} at {at}"

    def set_for(
        self, installation: Installation, process: subprocess.Popen[str]
    ) -> threading.Timer | None:
        def act() -> None:
            if process.poll() is None and not self.struck:
                with suppress(ProcessLookupError, FileNotFoundError, IndexError):
                    self._strike(installation, process)
                    self.struck = True

        if self.when == "time":
            timer = threading.Timer(self.after_s, act)
            timer.daemon = True
            timer.start()
            return timer
        moment, _, place = self.when.partition(" ")
        installation.proxy.trap = Trap(
            moment, self.nth, place, act, ends_client=self.what == "client KILL"
        )
        return None

    def _strike(self, installation: Installation, process: subprocess.Popen[str]) -> None:
        proxy = installation.proxy
        whom, _, how = self.what.partition(" ")
        if whom == "client":
            process.send_signal(signal.Signals[f"SIG{how}"])
        elif whom == "backend":
            for pid in proxy.backends()[-1:]:
                os.kill(pid, signal.SIGKILL if how == "KILL" else signal.SIGTERM)
        elif whom == "postmaster":
            os.kill(installation.postmaster(), signal.SIGKILL if how == "KILL" else signal.SIGQUIT)
            if self.recovers_early:
                threading.Thread(target=installation.revive, daemon=True).start()
        elif self.what == "network cut":
            proxy.drop(down_s=self.then, hard=self.recovers_early)
        elif self.what == "network blinks":
            proxy.drop(hard=self.recovers_early)
        elif self.what == "network stalled":
            proxy.stall(self.then)
        else:
            installation.fill()
            if self.recovers_early:
                threading.Timer(self.then, installation.free).start()

    def recover(self, installation: Installation) -> None:
        installation.free()
        installation.proxy.down_until = 0


def _faults_of_reports(ends: list[Row], last: Row, outcome: Outcome, again: Outcome) -> list[str]:
    """Checks the audit events of loads that finished: the first did everything, in spite of
    interruptions; a second one loaded the same file again."""
    if not ends:
        return ["the load has no audit event"]
    faults = []
    names = [name for name in COUNTS if last.get(name) != ends[-1].get(name)]
    if names:
        faults.append(f"report: {last}, and its audit event: {ends[-1]}")
    for number, report in enumerate(ends):
        wanted = outcome if number == 0 else again
        ranges = {
            "read": Range(wanted.read, wanted.read),
            "rejected": Range(wanted.rejected, wanted.rejected),
            "inserted": Range(wanted.inserted, wanted.inserted),
            "updated": wanted.updated,
            "deleted": wanted.deleted,
            "duplicates": Range(0, wanted.repeated),
        }
        faults += _outside(report, ranges, f"report {number + 1} of {len(ends)}")
        if report["read"] != sum(report[name] for name in COUNTS):
            faults.append(f"report: its parts are not what it has read: {report}")
        if runs := report.get("runs"):
            inserted = Range(wanted.runs_inserted, wanted.runs_inserted)
            ranges = {"inserted": inserted, "updated": wanted.runs_updated}
            faults += _outside(runs, ranges, "runs")
            if sum(runs.values()) != wanted.runs:
                faults.append(f"runs: {runs} are not {wanted.runs}")
    return faults


def _outside(report: Row, ranges: dict[str, Range], what: str) -> list[str]:
    return [
        f"{what}: {name} {report[name]}, not {wanted.least} to {wanted.most}: {report}"
        for name, wanted in ranges.items()
        if not wanted.least <= report[name] <= wanted.most
    ]


def _faults_of_versions(ends: list[Row], before: Stored, after: Stored) -> list[str]:
    """Each change in the reports has incremented a version, and no other change has."""
    moved = sum(after.versions.values()) - sum(before.versions.values())
    written = sum(report["inserted"] + report["updated"] for report in ends)
    return [] if moved == written else [f"{written} changes are reported and {moved} were made"]


def _faults_of_rejects(file: File, rejects: Path, ended: Ended) -> list[str]:
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    written = [(line["line"], line["byte_offset"]) for line in lines]
    wanted = sorted(file.bad.items())
    faults = [] if sorted(written) == wanted else [f"rejects: {sorted(written)}, not {wanted}"]
    code = 3 if wanted else 0
    return faults if ended.code == code else [*faults, f"exit code {ended.code}, not {code}"]


def _socket(given: dict[str, Any]) -> str:
    return f"{given['HOST']}/.s.PGSQL.{given['PORT']}"


def _mount(folder: Path) -> bool:
    """Mounts a small disk there, if possible."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0711", "tmpfs", str(folder)]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False
