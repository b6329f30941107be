"""Statements without I/O: the language between engines, which know SQL, and connections, which run it.

A verb of the engine is a generator. It yields statements and receives their rows, never awaits, and
never knows who runs it: our own pool or a user's session, from async or sync code. Errors are thrown
into it, so that it can clean up. What must happen as a whole says `yield from atomic(make_steps)`.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, cast

from staffa.errors import DatabaseError

__all__ = ["Control", "Item", "Rows", "Statement", "Steps", "atomic", "drive", "drive_async"]

T = TypeVar("T")

# How often steps are begun again that the database has broken off for another's sake (a deadlock, say).
REPEATS = 4

Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = list[Row]


class Statement:
    """SQL text with `:name` parameters, and their values: one mapping, or a sequence of them for many rows.

    A patient one may take as long as it takes: it makes an index on a large table, say.
    """

    __slots__ = ("many", "parameters", "patient", "text")

    def __init__(
        self,
        text: str,
        parameters: Mapping[str, Any] | None = None,
        many: Sequence[Sequence[Any]] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        self.text = text
        self.parameters = parameters or {}
        self.many = many
        self.patient = patient

    def __repr__(self) -> str:
        return f"Statement({' '.join(self.text.split())[:120]!r}, {self.parameters!r})"


Control: TypeAlias = Literal["savepoint", "release", "rollback_to"]
Item: TypeAlias = Statement | Control
Steps: TypeAlias = Generator[Item, Rows, T]


def atomic(make: Callable[[], Steps[T]]) -> Steps[T]:
    """All of the steps or none: a savepoint inside a transaction, a transaction outside of one.

    `make` makes the steps. When the database breaks our own transaction off for another's sake, they are made and
    run again.
    """
    for repeats in range(REPEATS, -1, -1):
        yield "savepoint"
        try:
            result = yield from make()
        except BaseException as error:
            yield "rollback_to"
            if repeats and isinstance(error, DatabaseError) and error.repeatable:
                continue
            raise
        yield "release"
        return result
    raise AssertionError("unreachable")


def drive(steps: Steps[T], run: Callable[[Item], Rows]) -> T:
    """Run steps to their end with a synchronous connection's `run`."""
    try:
        item = next(steps)
        while True:
            try:
                rows = run(item)
            except BaseException as error:
                item = steps.throw(error)
            else:
                item = steps.send(rows)
    except StopIteration as stop:
        return cast("T", stop.value)


async def drive_async(steps: Steps[T], run: Callable[[Item], Awaitable[Rows]]) -> T:
    """Run steps to their end with an asynchronous connection's `run`."""
    try:
        item = next(steps)
        while True:
            try:
                rows = await run(item)
            except BaseException as error:
                item = steps.throw(error)
            else:
                item = steps.send(rows)
    except StopIteration as stop:
        return cast("T", stop.value)
