"""Every exception that Staffa raises, in one tree.

    StaffaError
    ├── InvalidJob            a job cannot be built: every problem at once
    ├── InvalidOption         an option of an instance, a queue, a plugin or a worker is wrong
    ├── UnknownWorker         a name in the `worker` column that nothing here answers to
    ├── UnknownInstance       a worker cannot tell which instance it should enqueue into
    ├── JobCancelled          raised by `job.check_cancelled()` inside a job that should stop
    ├── JobTimeout            recorded when an attempt took longer than its timeout
    ├── MissingExtra          a feature needs an optional package
    ├── UnsupportedConnection `conn=` got something that Staffa cannot enqueue on
    └── DatabaseError         the database refused a statement
        ├── DatabaseUnavailable   it cannot be reached, is locked or full: trying again may help
        └── SchemaError           the tables are missing, outdated or newer than this code

Drivers' own errors become `DatabaseError`s in `staffa/connections/` and nowhere else, with the
original as `__cause__`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "DatabaseError",
    "DatabaseUnavailable",
    "InvalidJob",
    "InvalidOption",
    "JobCancelled",
    "JobTimeout",
    "MissingExtra",
    "Problem",
    "SchemaError",
    "StaffaError",
    "UnknownInstance",
    "UnknownWorker",
    "UnsupportedConnection",
]


class StaffaError(Exception):
    """The root of everything that Staffa raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (`queue`, `args.user.born`), what was expected, what came."""

    path: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, got: {self.got}"


class InvalidJob(StaffaError, ValueError):
    """A job cannot be built; `problems` lists everything that is wrong with it, not only the first."""

    def __init__(self, worker: str, problems: Sequence[Problem]) -> None:
        self.worker = worker
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{worker or 'a job without a worker'}: {count}\n{lines}")


class InvalidOption(StaffaError, ValueError):
    """An option has a wrong name or value; `option` is its name."""

    def __init__(self, message: str, *, option: str = "", problems: "Sequence[InvalidOption]" = ()) -> None:
        self.option = option
        self._problems = tuple(problems)
        super().__init__(message)

    @property
    def problems(self) -> "tuple[InvalidOption, ...]":
        """Each that is wrong, where several are; else this one."""
        return self._problems or (self,)


class UnknownWorker(StaffaError, LookupError):
    """No worker of that name is defined in, or can be imported by, this process."""

    def __init__(self, worker: str, reason: str) -> None:
        self.worker = worker
        super().__init__(f"unknown worker {worker!r}: {reason}")


class UnknownInstance(StaffaError, LookupError):
    """A worker was told to enqueue, and there is no instance, or more than one to choose from."""


class JobCancelled(StaffaError):
    """The running job has been cancelled, lost its claim, or must stop for a shutdown."""


class JobTimeout(StaffaError, TimeoutError):
    """An attempt took longer than its `timeout`."""


class MissingExtra(StaffaError, ImportError):
    """A feature needs an optional package; the message says what to install."""


class UnsupportedConnection(StaffaError, TypeError):
    """The object given as `conn=` is not a kind of connection that Staffa knows."""


class DatabaseError(StaffaError):
    """The database refused a statement; trying again will not help."""

    repeatable = False
    """Whether our own transaction was broken off for another's sake, so that it may simply be run again."""

    notice_refused = False
    """Whether only the message that went along could not be delivered: without it, the statement would have passed."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be reached, is locked, busy or full; trying again may help."""


class SchemaError(DatabaseError):
    """The tables are missing, older or newer than this version of Staffa; the message says what to do."""
