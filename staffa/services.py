"""What runs in a process for an instance: its services, started in their order and stopped in reverse.

This is the only place that constructs them.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from staffa.config import Config
from staffa.executor import Executor
from staffa.heartbeat import Heartbeat
from staffa.plugin import Plugin
from staffa.producer import Producer
from staffa.runners import ThreadRunner
from staffa.runtime import Runtime
from staffa.service import Service
from staffa.stager import Stager

__all__ = ["Services"]

log = logging.getLogger("staffa")


class _Startable(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class Services:
    """Everything that runs, from one start to its stop. `producers` are there by the names of their queues."""

    def __init__(self, runtime: Runtime, config: Config, plugins: Sequence[Plugin]) -> None:
        self.runtime = runtime
        self.config = config
        self.plugins = plugins
        self.producers: dict[str, Producer] = {}
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start them all, or none."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop what works together at once, then what it needs; the heartbeat lasts until the last job."""
        await self._stack.aclose()

    async def _start(self) -> None:
        runtime = self.runtime
        await self._start_one(runtime.notifier)
        await self._start_one(runtime.peer)
        if self.config.queues:
            await self._start_heartbeat()
        working: list[Service] = []
        self._stack.push_async_callback(_stop_all, working)
        stager = Stager(runtime, self._hungry, self.config.stage_interval)
        for plugin in self.plugins:
            plugin.bind(runtime)
        for service in (*self.producers.values(), stager, *self.plugins):
            working.append(service)
            await service.start()
        unwatch = runtime.connections.watch(stager.wake_from_anywhere)
        if unwatch is not None:
            self._stack.callback(unwatch)
        self._stack.callback(runtime.notifier.on_gap(stager.wake))

    async def _start_heartbeat(self) -> None:
        """With the producers it beats for, which begin to work later."""
        heartbeat = Heartbeat(self.runtime, lambda: list(self.producers.values()))
        threads = ThreadRunner(f"staffa {self.config.name}")
        self._stack.callback(threads.close)
        executor = Executor(self.runtime, threads)
        for queue, options in self.config.queues.items():
            self.producers[queue] = Producer(
                self.runtime,
                executor,
                queue,
                options,
                grace_period=self.config.grace_period,
                look_now=heartbeat.wake,
            )
        self._stack.callback(self.producers.clear)
        await self._start_one(heartbeat)

    async def _start_one(self, service: _Startable) -> None:
        await service.start()
        self._stack.push_async_callback(service.stop)

    def _hungry(self) -> list[str]:
        return [queue for queue, producer in self.producers.items() if producer.hungry]


async def _stop_all(services: Sequence[Service]) -> None:
    """At once, for each may have to wait for a database that does not answer."""
    ended = await asyncio.gather(*(service.stop() for service in services), return_exceptions=True)
    for service, error in zip(services, ended, strict=True):
        if isinstance(error, BaseException):
            log.error("%s could not be stopped in order", service.name, exc_info=error)
