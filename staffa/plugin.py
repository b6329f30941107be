"""What runs beside the queues: a plugin is `tick()` and its options.

The built-in plugins use nothing that a plugin of yours could not.
"""

from datetime import timedelta
from typing import Any, ClassVar

from staffa import telemetry
from staffa.options import check, seconds
from staffa.runtime import Runtime
from staffa.service import Loop

__all__ = ["Plugin"]


class Plugin(Loop):
    """Something that an instance does every `interval` seconds.

    Example:
        ```python
        from staffa import Plugin, Staffa

        class Gauge(Plugin):
            async def tick(self):
                counts = await self.runtime.run(self.runtime.engine.count_jobs())
                return {"jobs": sum(counts.values())}

        app = Staffa("sqlite:///jobs.db", plugins=[Gauge(interval=60)])
        ```

    What `tick` returns becomes `result` of the telemetry event `plugin.stop`. A tick that raises is logged, and
    comes again after a pause.

    Args:
        interval: Seconds or a `timedelta` between two ticks, moved a little at random so that nodes do not march in step.
    """

    leader_only: ClassVar[bool] = True
    """Whether only the leading node ticks."""

    def __init__(self, *, interval: float | timedelta = 60.0) -> None:
        every = seconds(interval)
        check(
            "interval", interval, ok=every is not None and every > 0, want="positive seconds or a timedelta"
        )
        super().__init__(every or 60.0)
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """Who we are and whom we talk to; there once an instance has taken the plugin."""
        if self._runtime is None:
            raise RuntimeError(f"{type(self).__name__} has no instance yet: give it to Staffa(plugins=[…])")
        return self._runtime

    def bind(self, runtime: Runtime) -> None:
        """Called by the instance before it starts the plugin."""
        self._runtime = runtime

    async def tick(self) -> Any:
        """One round of work."""

    async def work(self) -> None:
        """A tick with its telemetry, when it is this node's turn."""
        if self.leader_only and not self.runtime.peer.leads:
            return
        data = {"instance": self.runtime.name, "node": self.runtime.node, "plugin": self.name}
        with telemetry.span("plugin", data) as extra:
            extra["result"] = await self.tick()
