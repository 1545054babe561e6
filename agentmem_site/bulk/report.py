"""The report of a load, and the reasons why one stops early."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from agentmem_site.bulk.notices import Notices
from agentmem_site.bulk.spec import LineError

MAX_REJECTS_KEPT = 1_000


@dataclass(slots=True)
class Counts:
    """Numbers of rows. Each line is counted in one of them, or rejected."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0  # existing rows in the trash, left there
    duplicates: int = 0  # earlier lines with the same key in a batch: the last one counts

    def add(self, other: "Counts") -> None:
        for item in fields(other):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(slots=True)
class Tally:
    """The exact counts of what is committed. A job's checkpoint has it as JSON."""

    read: int = 0
    counts: Counts = field(default_factory=Counts)
    children: dict[str, Counts] = field(default_factory=dict)
    rejected: int = 0
    batches: int = 0
    retries: int = 0

    def add(self, other: "Tally") -> None:
        self.read += other.read
        self.counts.add(other.counts)
        for name, counts in other.children.items():
            self.children.setdefault(name, Counts()).add(counts)
        self.rejected += other.rejected
        self.batches += other.batches
        self.retries += other.retries

    def plus(self, other: "Tally") -> "Tally":
        total = Tally()
        total.add(self)
        total.add(other)
        return total

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Tally":
        children = {name: Counts(**counts) for name, counts in kept["children"].items()}
        return cls(**{**kept, "counts": Counts(**kept["counts"]), "children": children})


@dataclass(slots=True)
class LoadReport:
    """The result of the committed lines, in all runs of a resumed load."""

    resource: str
    tally: Tally = field(default_factory=Tally)
    resumed_after: int = 0  # the line after which this run started
    read_here: int = 0  # lines read by this run
    last_line: int = 0  # every line up to it is committed
    seconds: float = 0.0  # of this run
    dry_run: bool = False
    rejects: list[LineError] = field(default_factory=list)  # the first ones of this run
    notices: Notices = field(default_factory=Notices)  # of this run

    @property
    def counts(self) -> Counts:
        return self.tally.counts

    @property
    def children(self) -> dict[str, Counts]:
        return self.tally.children

    @property
    def read(self) -> int:
        return self.tally.read

    @property
    def rejected(self) -> int:
        return self.tally.rejected

    @property
    def batches(self) -> int:
        return self.tally.batches

    @property
    def rows_per_second(self) -> float:
        return self.read_here / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        tally = self.tally
        return {
            "resource": self.resource,
            "read": tally.read,
            **asdict(tally.counts),
            "rejected": tally.rejected,
            "batches": tally.batches,
            "retries": tally.retries,
            "last_line": self.last_line,
            "resumed_after": self.resumed_after,
            "seconds": round(self.seconds, 3),
            "rows_per_second": round(self.rows_per_second),
            "dry_run": self.dry_run,
            **{name: asdict(counts) for name, counts in tally.children.items()},
        }


class LoadStopped(Exception):
    """The load stopped before its end. The reported batches are committed."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


class BadLine(LoadStopped):
    """A line cannot be loaded; nothing of its batch is stored. (If too many lines are rejected,
    there is no `error`.)"""

    @property
    def error(self) -> LineError | None:
        return self.__cause__ if isinstance(self.__cause__, LineError) else None


class Unreadable(LoadStopped):
    """The file could not be read to its end."""


class ChangedFile(LoadStopped):
    """The file has changed since the job read it."""


class Interrupted(LoadStopped):
    """The database went away or was too slow. The same command resumes the load."""


class Refused(LoadStopped):
    """The database refused a statement that it should accept."""


class NotPermitted(LoadStopped):
    """The database role lacks a privilege."""


class Unprepared(LoadStopped):
    """The lines could not be prepared, and a retry will not help."""


class CannotWriteRejects(LoadStopped):
    """The rejected lines cannot be written."""
