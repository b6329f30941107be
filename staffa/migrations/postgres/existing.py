"""A table `oban_jobs` that is there already: made by Oban for Elixir, or by its Python port.

Such a table is used as it is. What is asked here is whether its columns are those that the statements name; in two
of them the makers differ, and the dialect spells for what is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from staffa import payload
from staffa.steps import Statement, Steps

if TYPE_CHECKING:
    from staffa.engines.dialect import Dialect

__all__ = ["Existing", "look"]

WHOLE = ("bigint", "integer", "smallint")
TEXT = ("text", "character varying")
MOMENT = ("timestamp without time zone",)

# What the statements need of each column.
COLUMNS: Mapping[str, Sequence[str]] = {
    "id": ("bigint",),
    "state": ("enum",),
    "queue": TEXT,
    "worker": TEXT,
    "args": ("jsonb",),
    "meta": ("jsonb",),
    "tags": ("text[]", "character varying[]", "jsonb"),
    "errors": ("jsonb[]", "jsonb"),
    "attempt": WHOLE,
    "max_attempts": WHOLE,
    "priority": WHOLE,
    "attempted_by": ("text[]",),
    "inserted_at": MOMENT,
    "scheduled_at": MOMENT,
    "attempted_at": MOMENT,
    "completed_at": MOMENT,
    "discarded_at": MOMENT,
    "cancelled_at": MOMENT,
}
STATES = frozenset(
    {"available", "scheduled", "executing", "retryable", "completed", "discarded", "cancelled"}
)

# The oldest of Oban's own migrations after which its table has all that is needed.
OLDEST = 11

LOOK = """
SELECT a.attname,
    CASE t.typtype WHEN 'e' THEN 'enum' ELSE format_type(a.atttypid, a.atttypmod) END,
    CASE t.typtype WHEN 'e' THEN
        (SELECT json_agg(e.enumlabel)::text FROM pg_enum AS e WHERE e.enumtypid = t.oid) END,
    obj_description(a.attrelid, 'pg_class')
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid = {regclass jobs} AND a.attnum > 0 AND NOT a.attisdropped
"""


@dataclass(frozen=True, slots=True)
class Existing:
    """The columns of a table that is there, by name; the labels of its states; and what its comment says."""

    columns: Mapping[str, str]
    states: frozenset[str]
    comment: str | None

    @property
    def errors_type(self) -> Literal["jsonb[]", "jsonb"]:
        """The type of `errors`."""
        return "jsonb" if self.columns.get("errors") == "jsonb" else "jsonb[]"

    @property
    def tags_type(self) -> Literal["text[]", "jsonb"]:
        """The type of `tags`."""
        return "jsonb" if self.columns.get("tags") == "jsonb" else "text[]"

    @property
    def problem(self) -> str | None:
        """Why this table cannot be used; None when it can."""
        missing = [name for name in COLUMNS if name not in self.columns]
        version = int(self.comment) if self.comment and self.comment.isdecimal() else None
        # The Python port, whose errors are of another type, counts its own versions.
        if version is not None and version < OLDEST and self.errors_type == "jsonb[]":
            return (
                f"it is of version {version} of Oban's migrations, and Staffa needs {OLDEST} or newer: "
                "run Oban's own migrations first"
            )
        if missing:
            return f"it has no column {', '.join(missing)}"
        for name, wanted in COLUMNS.items():
            if _plain(self.columns[name]) not in wanted:
                return f"expected its column {name} to be {' or '.join(wanted)}, got: {self.columns[name]}"
        if STATES - self.states:
            return f"its states lack {', '.join(sorted(STATES - self.states))}"
        return None


def look(dialect: "Dialect") -> Steps[Existing]:
    """Look at the table that is there."""
    rows = yield Statement(dialect.render(LOOK))
    states: frozenset[str] = frozenset()
    for name, _, labels, _ in rows:
        if name == "state" and labels:
            states = frozenset(payload.decode(labels))
    comments = {row[3] for row in rows}
    return Existing({row[0]: row[1] for row in rows}, states, comments.pop() if comments else None)


def _plain(kind: str) -> str:
    """A type without its length; a moment of fewer than six digits is another type, for it is no token."""
    plain = kind.replace("timestamp(6)", "timestamp")
    name, bracket, rest = plain.partition("(")
    if bracket and name == "character varying":
        return name + rest.partition(")")[2]
    return plain
