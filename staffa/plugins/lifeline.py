"""The lifeline takes the jobs of dead producers back."""

import logging
from datetime import timedelta
from typing import Any, ClassVar

from staffa.heartbeat import BEAT_EVERY, LONGEST_GAP, STALE_AFTER
from staffa.options import check
from staffa.plugin import Plugin

__all__ = ["Lifeline"]

log = logging.getLogger("staffa.lifeline")


class Lifeline(Plugin):
    """Rescues jobs whose producer's heartbeat has stopped; on every node, so that no death delays another's rescue.

    Their rows become available again, or discarded when that was the last attempt, and `meta.rescued` counts it.
    A job that simply takes long is never touched: only a heartbeat that is there and stale proves death, and only a
    node whose own heartbeat has come without a gap for 5 seconds may judge.

    Args:
        interval: Seconds between two looks.
        limit: At most so many jobs per dead producer and tick.

    Raises:
        InvalidOption: A value is wrong.
    """

    leader_only: ClassVar[bool] = False
    longest_pause = 5.0

    def __init__(self, *, interval: float | timedelta = 3.0, limit: int = 1_000) -> None:
        check("limit", limit, ok=limit > 0, want="a positive integer")
        super().__init__(interval=interval)
        self.limit = limit

    async def tick(self) -> dict[str, Any]:
        """Rescue, and wake the queues that got jobs back; nothing while our own heartbeat is not steady."""
        pulse = self.runtime.pulse
        if not pulse.steady_for(BEAT_EVERY, self.runtime.wall(), LONGEST_GAP):
            return {}
        rescue = self.runtime.engine.rescue_jobs(
            STALE_AFTER, self.limit, beaten_at=pulse.beaten_at, longest_gap=LONGEST_GAP
        )
        rescued = await self.runtime.run(rescue)
        if not rescued:
            return {}
        back = [job.id for job in rescued if job.state == "available"]
        discarded = [job.id for job in rescued if job.state == "discarded"]
        log.warning(
            "%d jobs of dead nodes are available again, %d had no attempt left", len(back), len(discarded)
        )
        queues = {job.queue for job in rescued if job.state == "available"}
        await self.runtime.notifier.notify("insert", [{"queue": queue} for queue in queues])
        return {"rescued": back, "discarded": discarded}
