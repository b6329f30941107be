"""What has to be reached on each database, and to whom its contenders are compared."""

from dataclasses import dataclass

from benchmarks.results import Results, Source

# By the title of the server. A contender's own name means the best of its forms.
REFERENCES = {
    "SQLite": ("floor-full", "floor-normal", "huey-full", "huey-off"),
    "PostgreSQL": ("floor-oban1", "floor-lean", "mini", "pgqueuer"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure, or its quotient by another one, has to reach."""

    text: str
    figure: Source
    by: Source | None = None
    at_least: float | None = None
    at_most: float | None = None

    def value(self, results: Results) -> float | None:
        return results.quotient(self.figure, self.by) if self.by else results.median(self.figure)

    def met(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most


def _share(workload: str, least: float, ours: str, other: str) -> Target:
    return Target(
        text=f"{workload}: {ours} ÷ {other}, at least {least}",
        figure=Source(workload, "jobs_s", ours),
        by=Source(workload, "jobs_s", other),
        at_least=least,
    )


def _idle(ours: str, queues: int) -> Target:
    return Target(
        text=f"idle: statements/s with {queues} queue{'s' if queues > 1 else ''}, at most 2",
        figure=Source("idle", f"queues_{queues}", ours),
        at_most=2,
    )


TARGETS = {
    "SQLite": (
        _share("drain", 0.35, "staffa-full", "floor-full"),
        _share("drain", 0.35, "staffa-normal", "floor-normal"),
        _share("drain", 0.35, "staffa-full", "floor-normal"),
        _share("drain", 1.0, "staffa-full", "huey-full"),
        _share("drain", 1.0, "staffa-full", "huey-off"),
        _share("bulk", 0.4, "staffa-full", "floor-full"),
        _share("bulk", 0.4, "staffa-normal", "floor-normal"),
        Target(
            text="within: p50 ÷ median single insert, at most 3",
            figure=Source("within", "p50", "staffa-full"),
            by=Source("single", "p50", "staffa-full"),
            at_most=3,
        ),
        Target(
            text="threads: drain of `def` jobs ÷ drain of `async def` jobs, at least 0.4",
            figure=Source("threads", "jobs_s", "staffa-full"),
            by=Source("drain", "jobs_s", "staffa-full"),
            at_least=0.4,
        ),
        _idle("staffa-full", 1),
        _idle("staffa-full", 50),
        Target(
            text="memory: MiB grown after the first tenth of the jobs, at most 5",
            figure=Source("memory", "growth", "staffa-full"),
            at_most=5,
        ),
    ),
    "PostgreSQL": (
        _share("drain", 0.55, "staffa", "floor-oban1"),
        _share("drain", 1.0, "staffa", "pgqueuer"),
        _share("bulk", 0.6, "staffa", "floor-oban1"),
        _share("single", 0.6, "staffa", "floor-oban1"),
        _share("single", 1.0, "staffa", "pgqueuer"),
        Target(
            text="latency: p50 ÷ that of mini, at most 1.4",
            figure=Source("latency", "p50", "staffa"),
            by=Source("latency", "p50", "mini"),
            at_most=1.4,
        ),
        _idle("staffa", 1),
        _idle("staffa", 50),
    ),
}
