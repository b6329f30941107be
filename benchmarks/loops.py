"""The event loop every contender runs in: uvloop where it is installed, asyncio's own elsewhere."""

import asyncio
from collections.abc import Coroutine
from importlib.metadata import version
from typing import TypeVar

try:
    import uvloop
except ImportError:
    NAME, new_event_loop = "asyncio", asyncio.new_event_loop
else:
    NAME, new_event_loop = f"uvloop {version('uvloop')}", uvloop.new_event_loop

T = TypeVar("T")


def run(main: Coroutine[object, object, T]) -> T:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
