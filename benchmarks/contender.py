"""The contract of a contender, and the forms in which one takes part.

A contender is made in a child process for one repetition. Its methods are called from there, by name, with
one exception: the attributes and `unfinished` and `completed` are read by the parent, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar, NoReturn


class Contender:
    """One way to run background jobs in a database. The bodies of its jobs call `probe.mark(n)`.

    A form needs the methods of the workloads in which it takes part; the others are never called.
    """

    # The forms in which it takes part (its name alone, if that is empty), and the workloads of each.
    variants: ClassVar[dict[str, frozenset[str]]]
    # Counts the jobs that are not yet known to be done; and those that are, unless their rows are deleted.
    unfinished: ClassVar[str]
    completed: ClassVar[str | None] = None
    # Whether one process can work several queues.
    many_queues: ClassVar[bool] = False

    def __init__(self, url: str, variant: str, limit: int) -> None:
        self.url = url
        self.variant = variant
        self.limit = limit

    @classmethod
    def description(cls) -> str:
        """Name, version and what sets it apart, for the head of the report."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the tables in the empty database. Called first, in a process of its own."""

    def fill(self, jobs: int, *, threads: bool) -> None:
        """Insert jobs 0 to `jobs` - 1, to be run by `def` functions if `threads`."""
        raise NotImplementedError

    def work(self, queues: int) -> NoReturn:
        """Run that many queues, call `probe.ready()`, and go on until the process is killed."""
        raise NotImplementedError

    def bulk(self, jobs: int) -> float:
        """Insert one job, then that many with the best bulk call there is.

        Returns the seconds without that first one, which opens what is opened once, but with building the jobs.
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


@dataclass(frozen=True, slots=True)
class Form:
    """A contender in one of its forms: `floor-full`, `floor-normal`, …"""

    group: str
    module: str
    variant: str

    @property
    def name(self) -> str:
        return f"{self.group}-{self.variant}" if self.variant else self.group

    @property
    def contender(self) -> type[Contender]:
        return load(self.module)

    @property
    def workloads(self) -> frozenset[str]:
        return self.contender.variants[self.variant]


def load(module: str) -> type[Contender]:
    found: type[Contender] = import_module(module).CONTENDER
    return found


def forms(modules: Mapping[str, str]) -> tuple[list[Form], dict[str, str]]:
    """Every form of these contenders, and why others cannot take part: what they need is not installed."""
    found: list[Form] = []
    missing: dict[str, str] = {}
    for group, module in modules.items():
        try:
            found += [Form(group, module, variant) for variant in load(module).variants]
        except ModuleNotFoundError as error:
            missing[group] = str(error)
    return found, missing
