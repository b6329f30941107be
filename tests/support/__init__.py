"""What the tests share: stores of every engine, a producer's side of the verbs, a clock that is told the time."""

from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.postgres_store import PostgresStore
from tests.support.producer import (
    Claimer,
    cancelled,
    completed,
    discarded,
    entry,
    failed,
    out_of_attempts,
    released,
    snoozed,
)
from tests.support.store import PAST, Plan, ServerMissing, Store, User, new_job, recorded
from tests.support.stores import ENGINES

__all__ = [
    "ENGINES",
    "PAST",
    "Claimer",
    "Clock",
    "Plan",
    "PostgresStore",
    "ServerMissing",
    "Store",
    "User",
    "cancelled",
    "completed",
    "discarded",
    "entry",
    "eventually",
    "failed",
    "new_job",
    "out_of_attempts",
    "recorded",
    "released",
    "snoozed",
]
