"""A connection of ours to a file: opened when it is used, closed for the moment of a fork, bound to one inode.

SQLite keeps its file locks in a table per process and file. A forked child inherits the table without the
locks, and whatever it opens beside an inherited connection would believe in locks that nobody holds: its
commits could be lost when the parent removes the log. So none of our connections exists while this process
forks. Whoever uses one does it in turns; a fork waits for the running turn, closes, and lets nobody in before
the fork is over.
"""

import logging
import os
import sqlite3
import threading
from types import TracebackType
from weakref import WeakSet

from staffa import clock
from staffa.connections.sqlite_driver import Settings, connect
from staffa.errors import DatabaseUnavailable

__all__ = ["Handle", "forking_here", "guard"]

log = logging.getLogger("staffa.connections")


class Handle:
    """A connection, its file's identity, and whose turn it is. As a context manager, it is one turn.

    Args:
        settings: What the URL says about the file.
        look_every: Seconds for which the file is believed to be where it was.
    """

    def __init__(self, settings: Settings, *, look_every: float) -> None:
        self.settings = settings
        self._look_every = look_every
        self._looked_at = 0.0
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._turn = _Turn()
        with guard():
            _handles.add(self)

    def __enter__(self) -> "Handle":
        self._turn.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn.end()

    def open(self) -> sqlite3.Connection:
        """The connection, for this turn.

        Raises:
            DatabaseUnavailable: The file is not the one that was opened; the next call opens what is there.
        """
        if self._connection is not None and clock.monotonic() - self._looked_at >= self._look_every:
            self._looked_at = clock.monotonic()
            if _identity_of(self.settings.path) != self._identity:
                self.drop()
                raise DatabaseUnavailable(
                    f"{self.settings.path} was deleted or replaced while it was open: what was written to it "
                    "lately may be lost; to exchange the file, stop everything that uses it first"
                )
        if self._connection is None:
            self._connection = connect(self.settings)
            self._identity = _identity_of(self.settings.path)
            self._looked_at = clock.monotonic()
        return self._connection

    def drop(self) -> None:
        """Close the connection; the next turn opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                log.warning("cannot close %s", self.settings.path, exc_info=True)

    def pause(self) -> None:
        """Let nobody begin a turn."""
        self._turn.pause()

    def park(self, deadline: float) -> None:
        """Close the connection as soon as the running turn has ended."""
        if self._turn.wait(deadline):
            self.drop()
        else:
            log.warning(
                "this process forks while %s is in use%s: the child should not use that database",
                self.settings.path,
                " in the same thread" if self._turn.mine() else " and does not become free",
            )

    def resume(self) -> None:
        """Go on, in the process that has forked."""
        self._turn.resume()

    def forget(self) -> None:
        """Start anew, in the child."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _left_behind.append(connection)
        self._turn = _Turn()


class _Turn:
    """A lock that can be barred, and that knows who holds it: nobody waits for himself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._user: int | None = None
        self._pauses = 0

    def begin(self) -> None:
        with self._changed:
            while self._user is not None or self._pauses:
                self._changed.wait()
            self._user = threading.get_ident()

    def end(self) -> None:
        with self._changed:
            self._user = None
            self._changed.notify_all()

    def mine(self) -> bool:
        return self._user == threading.get_ident()

    def pause(self) -> None:
        with self._changed:
            self._pauses += 1

    def wait(self, deadline: float) -> bool:
        """Whether nobody uses it before the deadline; at once when the calling thread itself does."""
        with self._changed:
            while self._user is not None and not self.mine():
                left = deadline - clock.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return self._user is None

    def resume(self) -> None:
        with self._changed:
            self._pauses -= 1
            self._changed.notify_all()


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def guard() -> threading.RLock:
    """The lock around everything that instances share in this process; a fork holds it, too.

    The same thread may take it again: the collector runs finalizers, which release files, at any moment.
    """
    return _lock


def forking_here() -> bool:
    """Whether the calling thread is about to fork, and holds everybody else up."""
    return bool(getattr(_fork, "paused", None))


_lock = threading.RLock()
_handles: WeakSet[Handle] = WeakSet()
_fork = threading.local()

# Connections that could not be closed before a fork: the child must neither use nor close nor collect them.
_left_behind: list[sqlite3.Connection] = []


def _before_fork() -> None:
    _fork.guarded = _lock.acquire(timeout=1)
    handles = list(_handles)
    _fork.paused = handles
    for handle in handles:
        handle.pause()
    began = clock.monotonic()
    for handle in handles:
        handle.park(began + handle.settings.busy_timeout + 1)


def _after_fork_in_parent() -> None:
    handles, _fork.paused = _fork.paused, None
    for handle in handles:
        handle.resume()
    if _fork.guarded:
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _fork.paused = None
    for handle in list(_handles):
        handle.forget()


if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
