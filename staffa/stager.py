"""The stager makes due jobs available, and tells queues that have something to claim.

It is also the net under lost messages: whatever is available is found by its next tick at the latest.
"""

from collections.abc import Callable, Sequence
from typing import Any

from staffa import telemetry
from staffa.engine import Staged
from staffa.options import check
from staffa.runtime import Runtime
from staffa.service import Loop

__all__ = ["Stager"]

# At most so many jobs become available in one statement; when there are more, the next follows at once.
LIMIT = 5_000


class Stager(Loop):
    """One per instance. `hungry` names the queues here that would claim now."""

    longest_pause = 5.0

    def __init__(self, runtime: Runtime, hungry: Callable[[], Sequence[str]], interval: float = 1.0) -> None:
        super().__init__(interval, "stager")
        check("stage_interval", interval, ok=interval > 0, want="positive seconds or a timedelta")
        self.runtime = runtime
        self._hungry = hungry

    async def tick(self) -> Staged:
        """Stage what is due, and wake the queues that have available jobs."""
        if not telemetry.listening_to_span("stager"):
            return await self._stage()
        data: dict[str, Any] = {"instance": self.runtime.name, "node": self.runtime.node}
        with telemetry.span("stager", data) as extra:
            staged = await self._stage()
            extra.update(staged._asdict())
        return staged

    async def _stage(self) -> Staged:
        if not self.runtime.peer.leads:
            return Staged(0, [], [])
        staged = await self.runtime.run(self.runtime.engine.stage_jobs(LIMIT, self._hungry()))
        # Other nodes look for themselves; only what has just come up is news to them.
        self.runtime.notifier.tell("insert", [{"queue": queue} for queue in staged.queues])
        if staged.into:
            await self.runtime.notifier.notify("insert", [{"queue": queue} for queue in staged.into])
        if staged.staged == LIMIT:
            self.wake()
        return staged
