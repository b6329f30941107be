"""Messages within one process.

All instances of a process that share a database hear each other, whichever event loops they run in.
Other processes notice by other means: SQLite's connections watch the file.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager

from staffa import telemetry
from staffa.notifier import Channel, Listener, Payload
from staffa.notifiers import ears

__all__ = ["LocalNotifier"]


class LocalNotifier:
    """A notifier for the instances of this process that share the database `topic`."""

    hears = False

    def __init__(self, instance: str, topic: str) -> None:
        self.instance = instance
        self.topic = topic

    def listen(self, channel: Channel, listener: Listener) -> Callable[[], None]:
        """Call `listener` in the running event loop; returns how to stop that."""
        return ears.listen(self.topic, channel, listener, self)

    async def notify(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        """Tell every listener of the channel: at once in this event loop, soon in others."""
        self._notify(channel, payloads)

    def tell(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        """The same, unseen by telemetry."""
        ears.tell(ears.of(self.topic, channel), payloads)

    def notice(self, queues: Collection[str]) -> None:
        """Nothing travels with a transaction here."""

    @contextmanager
    def waking(self, queues: Collection[str]) -> Generator[None]:
        """Wake the queues when the jobs are there."""
        yield
        self._notify("insert", [{"queue": queue} for queue in queues])

    def on_gap(self, look: Callable[[], None]) -> Callable[[], None]:
        """Nothing is ever missed within a process."""
        return lambda: None

    def _notify(self, channel: Channel, payloads: Sequence[Payload]) -> None:
        if payloads and telemetry.listening_to_span("notifier.notify"):
            data = {"instance": self.instance, "channel": channel, "payloads": list(payloads)}
            with telemetry.span("notifier.notify", data):
                self.tell(channel, payloads)
        else:
            self.tell(channel, payloads)

    async def start(self) -> None:
        """Nothing comes from elsewhere."""

    async def stop(self) -> None:
        """Nothing comes from elsewhere."""
