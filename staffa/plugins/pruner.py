"""The pruner deletes finished jobs that nobody will ask for any more."""

from collections.abc import Mapping
from datetime import timedelta

from staffa.errors import InvalidOption
from staffa.options import check, did_you_mean, seconds
from staffa.plugin import Plugin

__all__ = ["Pruner"]

DAY = 86_400.0
DEFAULT_AGES: Mapping[str, float] = {"completed": 7 * DAY, "discarded": 30 * DAY, "cancelled": 30 * DAY}


class Pruner(Plugin):
    """Keeps completed jobs for 7 days, discarded and cancelled ones for 30, counted from their end.

    Example:
        ```python
        from datetime import timedelta
        from staffa import Pruner, Staffa

        keep = {"completed": timedelta(hours=1), "discarded": timedelta(days=90)}
        app = Staffa("sqlite:///jobs.db", plugins=[Pruner(max_age=keep)])
        ```

    Args:
        max_age: Seconds or a `timedelta`: one for all three states, or a mapping by state; states that it does
            not name keep their default.
        interval: Seconds between two rounds.
        limit: At most so many jobs per statement; a round repeats it until nothing old is left.

    Raises:
        InvalidOption: A value is wrong.
    """

    def __init__(
        self,
        *,
        max_age: float | timedelta | Mapping[str, float | timedelta] | None = None,
        interval: float | timedelta = 30.0,
        limit: int = 1_000,
    ) -> None:
        check("limit", limit, ok=limit > 0, want="a positive integer")
        super().__init__(interval=interval)
        self.limit = limit
        self.max_age = _ages(max_age)

    async def tick(self) -> dict[str, int]:
        """Delete in small steps until nothing old is left, or it is time to stop."""
        total: dict[str, int] = {}
        while not self._halted.is_set():
            pruned = await self.runtime.run(self.runtime.engine.prune_jobs(self.max_age, self.limit))
            for state, count in pruned.items():
                total[state] = total.get(state, 0) + count
            if not any(count >= self.limit for count in pruned.values()):
                break
        return total


def _ages(said: float | timedelta | Mapping[str, float | timedelta] | None) -> dict[str, float]:
    if said is None:
        return dict(DEFAULT_AGES)
    by_state = dict(said) if isinstance(said, Mapping) else dict.fromkeys(DEFAULT_AGES, said)
    ages = dict(DEFAULT_AGES)
    for state, value in by_state.items():
        if state not in DEFAULT_AGES:
            raise InvalidOption(
                f"max_age: unknown state {state!r}{did_you_mean(state, DEFAULT_AGES)}", option="max_age"
            )
        age = seconds(value)
        check("max_age", value, ok=age is not None and age > 0, want="positive seconds or a timedelta")
        ages[state] = age or 0.0
    return ages
