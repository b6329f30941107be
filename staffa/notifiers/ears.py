"""Who listens in this process: the one thing that its instances share.

All instances of a process that share a database hear each other here, whichever event loops they run in.
A forked child starts deaf.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from staffa.notifier import Channel, Listener, Payload

__all__ = ["Ear", "Owner", "listen", "of", "tell"]

log = logging.getLogger("staffa.notifiers")


class Owner(Protocol):
    """The notifier that a listener was given to."""

    @property
    def hears(self) -> bool:
        """Whether what is sent comes back to it through the database, so that nobody here must tell it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Ear:
    """A listener, the event loop in which it wants to be called, and its notifier."""

    listener: Listener
    loop: asyncio.AbstractEventLoop
    owner: Owner


_ears: dict[tuple[str, Channel], list[Ear]] = {}  # by database and channel
_lock = threading.Lock()


def _deafen() -> None:
    global _lock
    _lock = threading.Lock()
    _ears.clear()


if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(after_in_child=_deafen)


def listen(topic: str, channel: Channel, listener: Listener, owner: Owner) -> Callable[[], None]:
    """Call `listener` in the running event loop; returns how to stop that."""
    ear = Ear(listener, asyncio.get_running_loop(), owner)
    with _lock:
        _ears.setdefault((topic, channel), []).append(ear)

    def unlisten() -> None:
        with _lock:
            left = _ears.get((topic, channel), [])
            if ear in left:
                left.remove(ear)
            if not left:
                _ears.pop((topic, channel), None)

    return unlisten


def of(topic: str, channel: Channel) -> tuple[Ear, ...]:
    """Those who listen now."""
    return tuple(_ears.get((topic, channel), ()))


def tell(listening: Iterable[Ear], payloads: Sequence[Payload]) -> None:
    """Tell them: at once in this event loop, soon in others."""
    here = asyncio.get_running_loop()
    for ear in listening:
        for payload in payloads:
            if ear.loop is here:
                _tell_one(ear.listener, payload)
            elif not ear.loop.is_closed():
                with suppress(RuntimeError):  # it is closed at this moment
                    ear.loop.call_soon_threadsafe(_tell_one, ear.listener, payload)


def _tell_one(listener: Listener, payload: Payload) -> None:
    try:
        listener(payload)
    except Exception:  # the message is sent all the same: what it tells of has been committed
        log.exception("a listener failed on %r", payload)
