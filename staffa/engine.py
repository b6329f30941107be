"""The contract of an engine: every verb that the rest of Staffa may use, as steps without I/O.

An engine knows all SQL for one kind of database and nothing about connections. `engines/basic.py`
holds the verbs over portable statements; an engine of its own overrides only where the *algorithm*
differs. What an engine can do is asked through the capabilities below, never by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from staffa.jobs import Job, RunningJob
from staffa.migrations import Migrations
from staffa.steps import Steps

__all__ = [
    "Ack",
    "Beat",
    "Beaten",
    "Claim",
    "Engine",
    "Executing",
    "JobFilter",
    "Lost",
    "Notice",
    "ProducerRow",
    "Rescued",
    "Staged",
]


class Ack(msgspec.Struct, gc=False):
    """The fate of a claimed job: what its row shall become if the claim still holds.

    `delay` is in seconds from the moment of writing; `error` is an entry for `errors`, as JSON text.
    """

    id: int
    token: str
    kind: Literal["complete", "fail", "discard", "cancel", "snooze", "release"]
    state: str = "completed"
    delay: float | None = None
    error: str | None = None


class Lost(NamedTuple):
    """An ack that changed nothing, for the claim was gone: the row's present state, None when it is deleted."""

    id: int
    state: str | None


class Claim(NamedTuple):
    """What one round of ack and claim brought: the jobs, the refused acks, and whether more may wait."""

    jobs: list[RunningJob]
    lost: list[Lost]
    full: bool


class Staged(NamedTuple):
    """How many due jobs became available, in which queues, and which of those asked for have available jobs."""

    staged: int
    into: list[str]
    queues: list[str]


class Rescued(NamedTuple):
    """A job taken from a dead producer; `state` is its new state."""

    id: int
    queue: str
    state: str


class Beat(NamedTuple):
    """One producer's row, as its heartbeat writes it."""

    uuid: str
    name: str
    node: str
    queue: str
    meta: Mapping[str, Any]


class Executing(NamedTuple):
    """A row that is executing under one of our producers."""

    id: int
    token: str
    uuid: str


class Beaten(NamedTuple):
    """What a heartbeat brought: the moment by the database's clock, and what executes under our producers."""

    now: str
    executing: list[Executing]


class Notice(NamedTuple):
    """Messages that the database itself delivers: the channel's full name, and the encoded payloads."""

    channel: str
    payloads: Sequence[str]


class ProducerRow(NamedTuple):
    """A producer as the database knows it; `alive` when its heartbeat is fresh."""

    uuid: str
    name: str
    node: str
    queue: str
    meta: dict[str, Any]
    started_at: str
    updated_at: str
    alive: bool


class JobFilter(NamedTuple):
    """Which jobs to list: each field a list of accepted values, None for any."""

    states: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    workers: Sequence[str] | None = None


class Engine(Protocol):
    """All SQL for one kind of database."""

    name: str

    # Capabilities, each an answer to a question.
    serves_itself: bool
    """May the tables be made by whichever verb comes first? (The embedded database: yes.)"""
    has_prefixes: bool
    """Can the tables live under a prefix (a schema)?"""
    skips_locked_rows: bool
    """Do two claimers pass by each other's rows instead of waiting?"""
    acks_before_it_claims: bool
    """Can a round trip claim what it has just given back?"""
    returns_inserted_rows: bool
    """Does one statement insert a row and return it?"""
    notifies: bool
    """Does the database itself deliver messages, when the transaction that sends them commits?"""

    migrations: Migrations
    now: Callable[[], str | None]
    """The moment that verbs bind as `:now`: None for the database's own clock. Tests replace it."""

    def insert_jobs(self, jobs: Sequence[Job], notice: Notice | None = None) -> Steps[list[Job]]:
        """Store new jobs, all or none, and give them their ids and moments; the notice is delivered if they are."""
        ...

    def notify(self, notice: Notice) -> Steps[None]:
        """Deliver messages; only where the database does that."""
        ...

    def ack_and_claim(
        self, beat: Beat, acks: Sequence[Ack], demand: int, unknown: Sequence[str] = ()
    ) -> Steps[Claim]:
        """Store outcomes and claim up to `demand` jobs of the producer's queue, as one; `unknown` workers are left."""
        ...

    def ack_jobs(self, beat: Beat, acks: Sequence[Ack]) -> Steps[list[Lost]]:
        """Store outcomes, each only if its claim still holds; returns those that did not."""
        ...

    def stage_jobs(self, limit: int, queues: Sequence[str]) -> Steps[Staged]:
        """Make up to `limit` due jobs available, the longest due first."""
        ...

    def heartbeat(self, beats: Sequence[Beat]) -> Steps[Beaten]:
        """Refresh our producers' rows; returns when that was, and what is executing under them."""
        ...

    def producers(self, stale_after: float) -> Steps[list[ProducerRow]]:
        """Every producer there is, on all nodes."""
        ...

    def retire_producers(self, beats: Sequence[Beat]) -> Steps[None]:
        """Delete our producers' rows, except those under which something still executes."""
        ...

    def held_states(self, ids: Sequence[int]) -> Steps[dict[int, tuple[str, str, str]]]:
        """State, token and producer's uuid of the rows with these ids, as far as they exist."""
        ...

    def rescue_jobs(
        self, stale_after: float, limit: int, *, beaten_at: str | None = None, longest_gap: float = 0.0
    ) -> Steps[list[Rescued]]:
        """Take up to `limit` jobs per dead producer back; a producer left without any is deleted.

        Nothing is done when `beaten_at`, our own last beat, is longer than `longest_gap` seconds ago by the
        database's clock: then it is that clock which has jumped.
        """
        ...

    def prune_jobs(self, max_age: Mapping[str, float], limit: int) -> Steps[dict[str, int]]:
        """Delete up to `limit` finished jobs per state that are older than that state's age in seconds."""
        ...

    def get_job(self, id: int) -> Steps[Job | None]:
        """One job."""
        ...

    def list_jobs(self, where: JobFilter, limit: int) -> Steps[list[Job]]:
        """Jobs, the newest first."""
        ...

    def count_jobs(self) -> Steps[dict[tuple[str, str], int]]:
        """How many jobs there are by (queue, state)."""
        ...

    def cancel_job(self, id: int) -> Steps[Job | None]:
        """Cancel an unfinished job; None when it is finished or does not exist."""
        ...

    def retry_job(self, id: int) -> Steps[Job | None]:
        """Make a job available again, with at least one attempt left; None when it waits or runs already."""
        ...
