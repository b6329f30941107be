"""SQLite's writer thread: one per process and file, shared by all loops, instances and sync code.

The thread drains its queue of verbs and runs them as a group: one `BEGIN IMMEDIATE`, each verb in a
savepoint, one COMMIT, then one wake-up per event loop for all answers. A verb that fails leaves nothing
and disturbs no other; a COMMIT that fails fails all of them. While it has nothing to do, it looks whether
another connection (another process, or a user's own) has committed.

Verbs that only read go to a reader, which is the same with a connection of its own: they wait neither for
another process's lock nor for a long group, and a long search holds up no claim.
"""

import asyncio
import atexit
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

from staffa import clock
from staffa.connections.sqlite_driver import BEGIN, Settings, commit, execute, roll_back
from staffa.connections.sqlite_handle import Handle, forking_here, guard
from staffa.errors import DatabaseError, DatabaseUnavailable
from staffa.steps import Item, Rows, Statement, Steps, drive

__all__ = ["Reply", "Request", "WriterThread", "acquire", "release"]

log = logging.getLogger("staffa.connections")

# At most so many verbs share one transaction: the first must not wait long for the last.
GROUP = 64

# Seconds between two looks at data_version: while there is work, within a minute of it, and later. The first
# bounds how late another process's job starts; the last what an idle process costs.
POLL_BUSY, POLL_QUIET, POLL_IDLE = 0.002, 0.010, 0.050
BUSY_FOR, QUIET_FOR = 1.0, 60.0

# Seconds within which a database file that was deleted or replaced is noticed.
LOOK_AT_FILE = 0.25


class Request:
    """A verb to run, and where its answer goes."""

    __slots__ = ("reply", "steps")

    def __init__(self, steps: Steps[Any], reply: "Reply") -> None:
        self.steps = steps
        self.reply = reply


class Reply:
    """A future of an event loop; the answers of one group reach a loop in one call."""

    __slots__ = ("answered", "error", "future", "loop", "result")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]") -> None:
        self.loop = loop
        self.future = future
        self.result: object = None
        self.error: BaseException | None = None
        self.answered = False

    def deliver(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class WriterThread:
    """One database file in this process: its queue of requests, its thread, its watchers."""

    def __init__(self, settings: "Settings") -> None:
        self.pid = os.getpid()
        self.settings = settings
        self.holders = 0
        self.watchers: list[Callable[[], None]] = []
        self._reader: WriterThread | None = None
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._handle = Handle(settings, look_every=LOOK_AT_FILE)
        self._watched: sqlite3.Connection | None = None
        self._version: int | None = None
        self._active_at = self._looked_at = clock.monotonic()
        self._thread = threading.Thread(target=self._serve, name=f"staffa {settings.path}", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        self._requests.put(request)

    def submit_read(self, request: Request) -> None:
        """Run a verb that only reads, beside the others."""
        with guard():
            if self._reader is None:
                self._reader = WriterThread(self.settings)
        self._reader.submit(request)

    def nudge(self) -> None:
        """Make the thread notice its watchers."""
        self._requests.put(None)

    def close(self) -> None:
        """Finish what is asked for, then close; waits for it unless the thread itself asks."""
        if self._reader is not None:
            self._reader.close()
        self._requests.put(_STOP)
        if threading.current_thread() is not self._thread and not forking_here():
            self._thread.join(timeout=self.settings.busy_timeout + 1)

    def _serve(self) -> None:
        serving = True
        while serving:
            try:
                serving = self._serve_once()
            except Exception:  # everybody here depends on this thread: whatever happens, it goes on
                log.critical(
                    "the writer thread of %s stumbled and goes on", self.settings.path, exc_info=True
                )
        while group := self._group(None):  # what was asked for while it was told to stop
            self._run_group(group)
        with self._handle:
            self._handle.drop()

    def _serve_once(self) -> bool:
        """Run the next group, or look for other connections' commits; False when it was told to stop."""
        try:
            request = self._requests.get(timeout=self._interval() if self.watchers else None)
        except queue.Empty:
            self._look()
            return True
        group = self._group(request)
        if group:
            self._run_group(group)
        if request is None or (
            self.watchers and clock.monotonic() - self._looked_at >= self._interval()
        ):  # there is a new watcher: from this version on it wants to know
            self._look()
        return request is not _STOP

    def _group(self, request: Request | None) -> list[Request]:
        group = [request] if request is not None and request is not _STOP else []
        while len(group) < GROUP:
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                break
            if request is _STOP:
                self._requests.put(_STOP)  # behind what was asked for before it is seen again
                break
            if request is not None:
                group.append(request)
        return group

    def _run_group(self, group: list[Request]) -> None:
        try:
            with self._handle:
                connection = self._handle.open()
                before = connection.total_changes
                self._answer(connection, group)
                if connection.total_changes != before:
                    self._active_at = clock.monotonic()
        except BaseException as error:
            _fail([request for request in group if not request.reply.answered], error)
            if not isinstance(error, Exception):
                raise
        finally:
            _deliver(group)

    def _answer(self, connection: sqlite3.Connection, group: list[Request]) -> None:
        written: list[Request] = []
        transaction = _Transaction(connection, alone=len(group) == 1)
        try:
            for request in group:
                if (
                    request.reply.future.cancelled()
                ):  # who was told of a timeout should not find it done later
                    request.reply.answered = True
                    continue
                self._answer_one(transaction, request, written)
        except Exception as error:  # nobody knows what is in the transaction now
            log.error("a verb cannot be ended, %s is opened anew", self.settings.path, exc_info=True)
            _fail(written, error)
            self._abandon(connection)
            raise
        try:
            commit(connection)
        except Exception as error:
            _fail(written, error)
            try:
                roll_back(connection)
            except sqlite3.Error:
                log.warning("cannot roll back, %s is opened anew", self.settings.path, exc_info=True)
                self._handle.drop()

    def _answer_one(self, transaction: "_Transaction", request: Request, written: list[Request]) -> None:
        """Run one verb of a group; adds it to those that have something to commit."""
        verb = _Verb(transaction)
        try:
            request.reply.result = drive(request.steps, verb.run)
        except BaseException as error:
            request.reply.error = error
            verb.undo()
            if not transaction.connection.in_transaction:  # SQLite undoes all of it when the disk is full
                _fail(written, error)
                written.clear()
        else:
            verb.release()
            if verb.open:
                written.append(request)
        request.reply.answered = True

    def _abandon(self, connection: sqlite3.Connection) -> None:
        try:
            roll_back(connection)
        except sqlite3.Error:
            log.debug("closing undoes what could not be rolled back", exc_info=True)
        self._handle.drop()

    def _interval(self) -> float:
        idle = clock.monotonic() - self._active_at
        return POLL_BUSY if idle < BUSY_FOR else POLL_QUIET if idle < QUIET_FOR else POLL_IDLE

    def _look(self) -> None:
        self._looked_at = clock.monotonic()
        try:
            with self._handle:
                connection = self._handle.open()
                version = connection.execute("PRAGMA data_version").fetchone()[0]
        except (sqlite3.Error, DatabaseError) as error:
            log.warning("cannot look at %s: %s", self.settings.path, error)
            return
        # Each connection counts for itself: while another was opened, somebody may have committed.
        if connection is not self._watched or version != self._version:
            seen_before = self._watched is not None
            self._watched, self._version = connection, version
            if seen_before:
                for callback in tuple(self.watchers):
                    callback()


class _Transaction:
    """What the verbs of a group share: they are committed together."""

    __slots__ = ("alone", "connection", "locked")

    def __init__(self, connection: sqlite3.Connection, *, alone: bool) -> None:
        self.connection = connection
        self.alone = alone
        self.locked: DatabaseUnavailable | None = None

    def begin(self) -> None:
        """Begin it, unless it is begun; who comes after one that waited in vain does not wait again."""
        if self.connection.in_transaction:
            return
        if self.locked is not None:
            raise self.locked
        try:
            execute(self.connection, BEGIN)
        except DatabaseUnavailable as error:
            self.locked = error
            raise


class _Verb:
    """One verb's part in a group: opens the transaction, and a savepoint, with its first write.

    A verb that is alone in its group needs no savepoint of its own: the transaction is one.
    """

    __slots__ = ("alone", "connection", "nested", "open", "transaction")

    def __init__(self, transaction: _Transaction) -> None:
        self.transaction = transaction
        self.connection = transaction.connection
        self.alone = transaction.alone
        self.open = False
        self.nested: list[str | None] = []

    def run(self, item: Item) -> Rows:
        match item:
            case "savepoint":
                self.nested.append(self._savepoint())
            case "release":
                name = self.nested.pop()
                if name is not None:
                    execute(self.connection, Statement(f"RELEASE {name}"))
            case "rollback_to":
                name = self.nested.pop()
                if name is None:
                    self.undo()
                elif self.connection.in_transaction:
                    execute(self.connection, Statement(f"ROLLBACK TO {name}"))
                    execute(self.connection, Statement(f"RELEASE {name}"))
            case Statement():
                if not self.open and not item.text.startswith(("SELECT", "PRAGMA")):
                    self._write()
                return execute(self.connection, item)
        return []

    def release(self) -> None:
        if self.open and not self.alone:
            execute(self.connection, _RELEASE)

    def undo(self) -> None:
        """Take back all that the verb has written, as if it had not begun."""
        if self.open and self.connection.in_transaction:
            if self.alone:
                execute(self.connection, _ROLLBACK)
            else:
                execute(self.connection, _ROLLBACK_TO)
                execute(self.connection, _RELEASE)
        self.open = False

    def _savepoint(self) -> str | None:
        if not self.open:
            self._write()
            return None  # what the verb's first write opens serves as its first savepoint
        name = f"staffa_{len(self.nested)}"
        execute(self.connection, Statement(f"SAVEPOINT {name}"))
        return name

    def _write(self) -> None:
        self.transaction.begin()
        if not self.alone:
            execute(self.connection, _SAVEPOINT)
        self.open = True


_SAVEPOINT = Statement("SAVEPOINT staffa")
_RELEASE = Statement("RELEASE staffa")
_ROLLBACK = Statement("ROLLBACK")
_ROLLBACK_TO = Statement("ROLLBACK TO staffa")
_STOP: Any = object()

_files: dict[str, WriterThread] = {}


def acquire(settings: "Settings") -> WriterThread:
    with guard():
        file = _files.get(settings.key)
        if file is None:
            file = _files[settings.key] = WriterThread(settings)
        elif file.settings != settings:
            log.warning(
                "%s is open already in this process with %s; they apply", settings.path, file.settings
            )
        file.holders += 1
        return file


def release(file: WriterThread) -> None:
    with guard():
        file.holders -= 1
        last = file.holders == 0
        if last:
            _files.pop(file.settings.key, None)
    if last:
        file.close()


def _close_all() -> None:
    for file in list(_files.values()):
        if file.pid == os.getpid():
            file.close()


if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(after_in_child=_files.clear)  # the threads did not come along
atexit.register(_close_all)


def _fail(group: list[Request], error: BaseException) -> None:
    for request in group:
        request.reply.error = request.reply.error or error


def _deliver(group: list[Request]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[Reply]] = {}
    for request in group:
        by_loop.setdefault(request.reply.loop, []).append(request.reply)
    for loop, replies in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver_in_loop, replies)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            log.debug("%d answers came after their event loop was closed", len(replies))


def _deliver_in_loop(replies: list[Reply]) -> None:
    for reply in replies:
        reply.deliver()
