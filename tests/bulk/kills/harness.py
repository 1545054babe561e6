"""Loads that are killed at random moments, and the same command again until it ends well.

The real command in its own process; an embedded PostgreSQL of the harness's own behind a proxy,
on a small disk where one can be mounted.
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
DISK_BYTES = 512 * 1024 * 1024  # enough for a cluster; little enough to be filled at once
PATIENCE_S = 90
WELL = {0, 3}
TEMPORARY = 75
# What a signal ends a command with: 143 and 130, which is also what a shell makes of a death by it.
SIGNALLED = {
    "client KILL": {-signal.SIGKILL},
    "client TERM": {143, -signal.SIGTERM},
    "client INT": {130, -signal.SIGINT},
}


class Fault(AssertionError):
    """Something is lost, doubled or told wrong."""


@dataclass
class Figures:
    """What a run has done."""

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
    """A command that has ended, and what had been done to it."""

    code: int
    said: str
    complained: str
    killed: str  # what, at which moment; "" if it came to its end undisturbed
    seconds: float
    may_be_early: bool  # no connection of it was seen

    @property
    def report(self) -> dict[str, Any]:
        for line in reversed(self.said.splitlines()):
            with suppress(ValueError):
                return dict(json.loads(line))
        return {}


class Installation:
    """A server of the harness's own, with a door that it can break."""

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
        # To the server itself, which a command then starts where it does not run.
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
        with self._filling:  # (the proxy's thread may still be at it)
            self.filler.unlink(missing_ok=True)

    def postmaster(self) -> int:
        return int((self.server.pgdata / "postmaster.pid").read_text().split()[0])

    def revive(self) -> None:
        self.server.start(timeout_s=PATIENCE_S)

    def empty(self) -> None:
        """Room on the small disk."""
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
    """Files and kills, from a seed, until as many kills as asked for have struck."""

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
        """One of them by chance; of a short run, too, each in its share."""
        name = " ".join(weights)
        deck = self._decks.setdefault(name, [])
        if not deck:
            deck += [
                word for word, n in weights.items() for _ in range(n) if word not in self.without
            ]
            self._random.shuffle(deck)
        return deck.pop()

    def until(self, kills: int) -> Figures:
        began = time.monotonic()
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
            self.figures.seconds = time.monotonic() - began
            self.say(str(self.figures))
        return self.figures


class World:
    """An organization, some files into it one after the other, each killed several times."""

    def __init__(self, run: Run, random: Random, slug: str) -> None:
        self.run = run
        self.installation = run.installation
        self.figures = run.figures
        self.random = random
        self.slug = slug
        self.oracle = Tables()
        self.said: dict[str, list[Row]] = {}  # by resource: the good lines of its files so far
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
        self.installation.free()  # of a fault that came when its command had ended
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
            before=self.said.setdefault(resource, []),
        )
        self.said[resource] += [line for line, is_good in file.lines if is_good]
        rejects = path.with_suffix(".rejects") if skips else None
        command = self._command(file, rejects)
        outcome = self.oracle.apply(resource, file.lines)
        # What the same file would do on top: a load that had come to its end before the kill.
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
        told = after.faults(self.oracle) + after.touched(before, changed)
        if self.installation.can("--job"):
            told += _faults_of_reports(reports, ended.report, outcome, again)
            if resource == "memories":
                told += _faults_of_versions(reports, before, after)
        told += _faults_of_rejects(file, rejects, ended) if rejects else []
        if told:
            raise Fault("\n".join(told[:20]) + f"\n({len(told)} in all)")
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
        """Some rows into the trash."""
        keys = [k for k in self.oracle.rows if k not in self.oracle.deleted]
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
        """Some rows as somebody else would: a line that was loaded into them is news again."""
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
        """The end of the first command that nobody stopped."""
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
                raise Fault(f"It does not come to an end: {ended.complained}")
            if quiet:
                time.sleep(0.5)

    def _check(self, ended: Ended) -> None:
        what, _, _ = ended.killed.partition(" at ")
        # (A signal while Python itself starts is told by Python.)
        if ended.may_be_early and "KeyboardInterrupt" in ended.complained:
            return
        if ended.code not in WELL | SIGNALLED.get(what, {TEMPORARY}):
            raise Fault(f"exit code {ended.code}: {ended.complained[-1500:]}")
        if "Traceback" in ended.complained:
            raise Fault(f"a traceback: {ended.complained[-1500:]}")

    def _run(self, command: list[str], kill: "Kill | None", file: File) -> Ended:
        installation, proxy = self.installation, self.installation.proxy
        if self.has_door:
            installation.revive()
        met, killed, began = proxy.met, "", time.monotonic()
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
                said, complained = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Fault(f"it hangs, after {kill}") from None
            finally:
                proxy.trap = None
                if timer:
                    timer.cancel()
        seconds = time.monotonic() - began
        if kill and kill.struck:
            killed = str(kill)
            self.figures.kinds[kill.what] += 1
            self.figures.moments[kill.when] += 1
            kill.recover(installation)
        early = proxy.met == met
        return Ended(process.returncode, said, complained, killed, seconds, early)

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
            is_met=random.random() < 0.5,
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
    "network blinks": 4,  # mostly in the middle of a COMMIT: the loader itself has to find out
    "network stalled": 2,
    "disk full": 1,
}


WITHOUT_DOOR = ("client KILL", "client TERM", "client INT", "postmaster KILL", "postmaster stopped")
MOMENTS = {"time": 3, "connect": 1, "copy": 3, "commit": 4}
PLACES = ("before", "before", "half", "sent", "sent", "answered", "half answered")
MID_COMMIT = {f"commit {place}" for place in PLACES if place != "before"}


@dataclass
class Kill:
    """What strikes a command, and when."""

    what: str
    when: str  # "time", "connect", or a moment and a place of the proxy's
    nth: int
    after_s: float
    then: float  # seconds until what was cut, stalled or filled is well again
    is_met: bool  # what was killed comes back while the command still runs
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
            moment, self.nth, place, act, is_the_end=self.what == "client KILL"
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
            if self.is_met:
                threading.Thread(target=installation.revive, daemon=True).start()
        elif self.what == "network cut":
            proxy.drop(down_s=self.then, hard=self.is_met)
        elif self.what == "network blinks":
            proxy.drop(hard=self.is_met)
        elif self.what == "network stalled":
            proxy.stall(self.then)
        else:
            installation.fill()
            if self.is_met:
                threading.Timer(self.then, installation.free).start()

    def recover(self, installation: Installation) -> None:
        installation.free()
        installation.proxy.down_until = 0


def _faults_of_reports(ends: list[Row], last: Row, outcome: Outcome, again: Outcome) -> list[str]:
    """Of the loads that came to their end, by their audit events: the first did it all, whatever
    has interrupted it, another did the same file over."""
    if not ends:
        return ["no audit event tells of the load"]
    told = []
    names = [name for name in COUNTS if last.get(name) != ends[-1].get(name)]
    if names:
        told.append(f"report: {last}, and its audit event: {ends[-1]}")
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
        told += _outside(report, ranges, f"report {number + 1} of {len(ends)}")
        if report["read"] != sum(report[name] for name in COUNTS):
            told.append(f"report: its parts are not what it has read: {report}")
        if below := report.get("runs"):
            inserted = Range(wanted.runs_inserted, wanted.runs_inserted)
            ranges = {"inserted": inserted, "updated": wanted.runs_updated}
            told += _outside(below, ranges, "runs")
            if sum(below.values()) != wanted.runs:
                told.append(f"runs: {below} are not {wanted.runs}")
    return told


def _outside(report: Row, ranges: dict[str, Range], what: str) -> list[str]:
    return [
        f"{what}: {name} {report[name]}, not {wanted.least} to {wanted.most}: {report}"
        for name, wanted in ranges.items()
        if not wanted.least <= report[name] <= wanted.most
    ]


def _faults_of_versions(ends: list[Row], before: Stored, after: Stored) -> list[str]:
    """Each change that was told of has moved a version, and no other."""
    moved = sum(after.versions.values()) - sum(before.versions.values())
    written = sum(report["inserted"] + report["updated"] for report in ends)
    return [] if moved == written else [f"{written} changes are told of and {moved} were made"]


def _faults_of_rejects(file: File, rejects: Path, ended: Ended) -> list[str]:
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    found = [(line["line"], line["byte_offset"]) for line in lines]
    wanted = sorted(file.bad.items())
    told = [] if sorted(found) == wanted else [f"rejects: {sorted(found)}, not {wanted}"]
    code = 3 if wanted else 0
    return told if ended.code == code else [*told, f"exit code {ended.code}, not {code}"]


def _socket(given: dict[str, Any]) -> str:
    return f"{given['HOST']}/.s.PGSQL.{given['PORT']}"


def _mount(folder: Path) -> bool:
    """A small disk there, where that can be had."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0711", "tmpfs", str(folder)]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False
