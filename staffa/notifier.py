"""The contract of a notifier: messages between services, and between nodes.

Channels: `insert` says that a queue has something to claim (`{"queue": "mail"}`), `signal` carries
commands (`{"action": "cancel", "job_id": 7}`). A message may be lost: whatever matters is also found
by looking, at the latest by the stager's next tick.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

__all__ = ["Channel", "Listener", "Notifier", "Payload"]

Channel: TypeAlias = str
Payload: TypeAlias = Mapping[str, Any]
Listener: TypeAlias = Callable[[Payload], None]


class Notifier(Protocol):
    """Sends messages, and calls listeners in the event loop in which they listened."""

    def listen(self, channel: Channel, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each message of the channel; returns how to stop that."""
        ...

    async def notify(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        """Send messages; those that hear them are told before or soon after it returns."""
        ...

    async def start(self) -> None:
        """Begin to receive from elsewhere."""
        ...

    async def stop(self) -> None:
        """Stop receiving."""
        ...
