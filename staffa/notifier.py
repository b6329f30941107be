"""The contract of a notifier: messages between services, and between nodes.

Channels and payloads are Oban's. `insert` says that a queue has something to claim (`{"queue": "mail"}`),
`signal` carries commands (`{"action": "pkill", "job_id": 7}`: the job was cancelled, stop it). A message may be
lost: whatever matters is also found by looking, at the latest by the stager's next tick.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

from staffa.engine import Notice

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

    def tell(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        """Tell the listeners of this process, and nobody else."""
        ...

    def notice(self, queues: Collection[str]) -> Notice | None:
        """What an insert of jobs into these queues shall send within a transaction of the user's, if anything."""
        ...

    def waking(self, queues: Collection[str]) -> AbstractContextManager[Notice | None]:
        """Around an insert of jobs into these queues that commits by itself: yields what it shall send, if anything.

        Queues that were woken a moment ago are left out, and woken again a moment after the block.
        """
        ...

    def on_gap(self, look: Callable[[], None]) -> Callable[[], None]:
        """Call `look` when messages may have been missed; returns how to stop that."""
        ...

    async def start(self) -> None:
        """Begin to receive from elsewhere."""
        ...

    async def stop(self) -> None:
        """Stop receiving."""
        ...
