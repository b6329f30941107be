"""Waiting for a condition, for tests never sleep a fixed time."""

import asyncio
from collections.abc import Callable, Coroutine
from inspect import isawaitable
from typing import Any, TypeVar, overload

from staffa import clock

__all__ = ["eventually"]

T = TypeVar("T")

POLL = 0.003


@overload
async def eventually(condition: Callable[[], Coroutine[Any, Any, T | None]], timeout: float = 30) -> T: ...
@overload
async def eventually(condition: Callable[[], T | None], timeout: float = 30) -> T: ...
async def eventually(condition: Callable[[], Any], timeout: float = 30) -> Any:
    """Ask, every few milliseconds, until the answer is true; returns it, or fails after `timeout` seconds."""
    deadline = clock.monotonic() + timeout
    while True:
        answer = condition()
        value = await answer if isawaitable(answer) else answer
        if value:
            return value
        if clock.monotonic() > deadline:
            raise AssertionError(f"{condition} was still {value!r} after {timeout:g} s")
        await asyncio.sleep(POLL)
