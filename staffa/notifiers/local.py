"""Messages within one process.

All instances of a process that share a database hear each other, whichever event loops they run in.
Other processes notice by other means: SQLite's connections watch the file.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence

from staffa import telemetry
from staffa.notifier import Channel, Listener, Payload

__all__ = ["LocalNotifier"]


log = logging.getLogger("staffa.notifiers")


class _Ear:
    """A listener and the event loop in which it wants to be called."""

    __slots__ = ("listener", "loop")

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self.listener = listener
        self.loop = loop


# The ears by database and channel: the one thing that instances of a process share. A forked child starts deaf.
_ears: dict[tuple[str, Channel], list[_Ear]] = {}
_lock = threading.Lock()


def _deafen() -> None:
    global _lock
    _lock = threading.Lock()
    _ears.clear()


if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(after_in_child=_deafen)


class LocalNotifier:
    """A notifier for the instances of this process that share the database `topic`."""

    def __init__(self, instance: str, topic: str) -> None:
        self.instance = instance
        self.topic = topic

    def listen(self, channel: Channel, listener: Listener) -> Callable[[], None]:
        """Call `listener` in the running event loop; returns how to stop that."""
        ear = _Ear(listener, asyncio.get_running_loop())
        with _lock:
            _ears.setdefault((self.topic, channel), []).append(ear)

        def unlisten() -> None:
            with _lock:
                ears = _ears.get((self.topic, channel), [])
                if ear in ears:
                    ears.remove(ear)
                if not ears:
                    _ears.pop((self.topic, channel), None)

        return unlisten

    async def notify(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        """Tell every listener of the channel: at once in this event loop, soon in others."""
        if telemetry.listening_to_span("notifier.notify"):
            data = {"instance": self.instance, "channel": channel, "payloads": list(payloads)}
            with telemetry.span("notifier.notify", data):
                self._tell(channel, payloads)
        else:
            self._tell(channel, payloads)

    async def start(self) -> None:
        """Nothing comes from elsewhere."""

    async def stop(self) -> None:
        """Nothing comes from elsewhere."""

    def _tell(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        here = asyncio.get_running_loop()
        for ear in tuple(_ears.get((self.topic, channel), ())):
            for payload in payloads:
                if ear.loop is here:
                    _tell_one(ear.listener, payload)
                elif not ear.loop.is_closed():
                    ear.loop.call_soon_threadsafe(_tell_one, ear.listener, payload)


def _tell_one(listener: Listener, payload: Payload) -> None:
    try:
        listener(payload)
    except Exception:  # the message is sent all the same: what it tells of has been committed
        log.exception("a listener failed on %r", payload)
