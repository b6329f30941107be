"""The contract of connections: how steps get to a database.

`Connections` is what an instance holds: it opens on first use, serves every event loop and thread of
the process, and is opened anew after a fork. `Adopted` is a connection of the user's own, inside whose
transaction a few steps are run.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from staffa.errors import InvalidOption
from staffa.options import shown
from staffa.steps import Steps

__all__ = ["Adopted", "Connections", "Dedicated", "URL", "parse_url"]

T = TypeVar("T")

KINDS = {
    "sqlite": "sqlite",
    "postgres": "postgres",
    "postgresql": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
}


@dataclass(frozen=True, slots=True)
class URL:
    """A parsed database URL: `kind` chooses the engine, the rest is the connections' business."""

    text: str = field(repr=False)
    kind: str
    path: str
    options: dict[str, str]

    @property
    def safe(self) -> str:
        """The URL without its password, fit for logs."""
        return _without_password(self.text)


class Dedicated(Protocol):
    """A connection that one thread has for itself, so that it never waits behind anything else."""

    async def run(self, steps: Steps[T]) -> T:
        """Run steps and commit them."""
        ...

    async def close(self) -> None:
        """Close it; safe to call twice."""
        ...


class Adopted(Protocol):
    """A connection that belongs to the user, in whose transaction steps are run."""

    async def run(self, steps: Steps[T]) -> T:
        """Run steps in the user's transaction; an error of ours leaves it usable."""
        ...


class Connections(Protocol):
    """All the connections of an instance to its database."""

    url: URL
    topic: str
    """Names the database within this process: those with the same topic share it."""

    async def run(self, steps: Steps[T]) -> T:
        """Run steps from the running event loop, whichever it is, and commit them."""
        ...

    async def read(self, steps: Steps[T]) -> T:
        """Run steps that only read, so that they wait for nobody who writes."""
        ...

    def adopt(self, connection: object) -> Adopted:
        """Wrap a connection of the user's own to this database.

        Raises:
            UnsupportedConnection: It is of another kind, or leads to another database; the message says which.
        """
        ...

    async def dedicated(self) -> Dedicated:
        """Open a connection for the calling thread alone."""
        ...

    def watch(self, callback: Callable[[], None]) -> Callable[[], None] | None:
        """Call back, from any thread, when another connection has committed; returns how to stop it.

        None when this kind of database cannot tell.
        """
        ...

    async def close(self) -> None:
        """Close what is open; it opens again when it is used again."""
        ...

    def release(self) -> None:
        """The same without an event loop, as far as that is possible: for instances that are forgotten."""
        ...


@lru_cache(maxsize=64)
def parse_url(text: str) -> URL:
    """Take a database URL apart.

    Raises:
        InvalidOption: It is not a URL of a kind that Staffa knows; the message shows the forms.
    """
    scheme, colon, _ = text.partition("://")
    kind = KINDS.get(scheme.partition("+")[0].lower())
    if not colon or kind is None:
        raise InvalidOption(
            "expected url to be one like sqlite:///jobs.db (a relative path), sqlite:////var/lib/jobs.db (an "
            "absolute one) or postgresql://user:password@host:5432/database, got: "
            f"{shown(_without_password(text))}",
            option="url",
        )
    try:
        parts = urlsplit(text)
    except ValueError as error:
        del error  # it may name the part that holds the password
        raise InvalidOption(
            f"expected url to be a URL, got one that is broken: {shown(_without_password(text))}",
            option="url",
        ) from None
    return URL(text=text, kind=kind, path=unquote(parts.path[1:]), options=dict(parse_qsl(parts.query)))


@lru_cache(maxsize=64)
def _without_password(text: str) -> str:
    if not _HOLDS_NONE.match(text):
        text = _UP_TO_THE_HOST.sub(_masked, text)
    return re.sub(r"(?i)(password=)[^&]*", r"\1***", text)


# A password may hold anything that parts a URL elsewhere. Only these forms are sure to hold none before their query.
_HOLDS_NONE = re.compile(
    r"""(?x) [^@]*\Z
    | sqlite(\+\w+)?:///
    | [\w+.-]+://([^/@:?\#\s]*@)?[\w.-]*(:\d+)?(/[^@:]*)?(\?[^?]*)?\Z""",
    re.IGNORECASE,
)
_UP_TO_THE_HOST = re.compile(
    r"(?s)\A(\s*[a-z][\w+.-]*://|\s*(?:postgres|postgresql|mysql|mariadb|sqlite):/*)?(.*)@", re.IGNORECASE
)


def _masked(found: re.Match[str]) -> str:
    user, colon, _ = found[2].partition(":")
    said = f"{user}:" if colon and found[1] and "://" in found[1] else ""
    return f"{found[1] or ''}{said}***@"
