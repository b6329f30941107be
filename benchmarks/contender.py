"""The contract of a contender, and the table of all of them.

A contender is made in a child process for one repetition. Its methods are called from there, by name, with
one exception: the attributes and `unfinished` and `completed` are read by the parent, too.
"""

from importlib import import_module
from pathlib import Path
from typing import ClassVar, NoReturn

MODULES = {
    "staffa": "benchmarks.contenders.staffa_sqlite",
    "floor": "benchmarks.floors.sqlite",
    "huey": "benchmarks.contenders.huey_sqlite",
}


class Contender:
    """One way to run background jobs in an SQLite file. The bodies of its jobs call `probe.mark(n)`."""

    # The forms in which it takes part, by the durability of a commit, and the workloads of each.
    variants: ClassVar[dict[str, frozenset[str]]]
    # Counts the jobs that are not yet known to be done; and those that are, unless their rows are deleted.
    unfinished: ClassVar[str]
    completed: ClassVar[str | None] = None
    # Whether one process can work several queues.
    many_queues: ClassVar[bool] = False

    def __init__(self, folder: Path, variant: str, limit: int) -> None:
        self.database = folder / "jobs.db"
        self.variant = variant
        self.limit = limit

    @classmethod
    def description(cls) -> str:
        """Name, version and what sets it apart, for the head of the report."""
        raise NotImplementedError

    def fill(self, jobs: int, *, threads: bool) -> None:
        """Insert jobs 0 to `jobs` - 1, to be run by `def` functions if `threads`."""
        raise NotImplementedError

    def work(self, queues: int) -> NoReturn:
        """Run that many queues, call `probe.ready()`, and go on until the process is killed."""
        raise NotImplementedError

    def bulk(self, jobs: int) -> float:
        """Insert one job, then that many with the best bulk call there is.

        Returns the seconds without that first one, in which tables are made, but with building the jobs.
        """
        raise NotImplementedError

    def single(self, jobs: int) -> list[float]:
        """Insert one job, then that many one by one. Returns the seconds of each but the first."""
        raise NotImplementedError

    def paced(self, jobs: int, gap: float) -> list[int]:
        """Insert a job every `gap` seconds. Returns the moments before each, as of `time.monotonic_ns`."""
        raise NotImplementedError

    def together(self, jobs: int, gap: float) -> list[int]:
        """The same in a process that works the queue as well; returns when all have started."""
        raise NotImplementedError

    def churn(self, jobs: int, batch: int) -> NoReturn:
        """Insert and run that many jobs in this process, a batch at a time; then wait to be killed."""
        raise NotImplementedError


def names(groups: list[str]) -> list[str]:
    """Every form of the given contenders: `staffa-full`, `staffa-normal`, …"""
    return [f"{group}-{variant}" for group in groups for variant in contender(group).variants]


def contender(name: str) -> type[Contender]:
    """The class of a contender, by its name or that of one of its forms."""
    found: type[Contender] = import_module(MODULES[name.partition("-")[0]]).CONTENDER
    return found
