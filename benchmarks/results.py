"""What a run has measured, and how figures are compared."""

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one repetition of a workload gave for a contender."""

    workload: str
    contender: str
    repetition: int
    figures: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A figure of a contender: of one of its forms, or under the contender's own name of the best of them."""

    workload: str
    figure: str
    contender: str

    def covers(self, m: Measurement) -> bool:
        return m.workload == self.workload and self.contender in (m.contender, m.contender.partition("-")[0])


class Results:
    """All measurements of a run, by figure."""

    def __init__(self, measurements: list[Measurement]) -> None:
        self.measurements = measurements

    def contenders(self, workload: str) -> list[str]:
        """Who took part, in the order of their first turn."""
        return list(dict.fromkeys(m.contender for m in self.of(workload)))

    def of(self, workload: str) -> list[Measurement]:
        return [m for m in self.measurements if m.workload == workload]

    def values(self, source: Source) -> dict[int, float]:
        """The figure in each repetition that gave it."""
        values: dict[int, float] = {}
        for m in filter(source.covers, self.measurements):
            if source.figure in m.figures:
                best = values.get(m.repetition, m.figures[source.figure])
                values[m.repetition] = max(best, m.figures[source.figure])
        return values

    def median(self, source: Source) -> float | None:
        values = self.values(source).values()
        return statistics.median(values) if values else None

    def quotient(self, source: Source, by: Source) -> float | None:
        """The median of the quotients within each repetition: what slows a machine down slows both."""
        over, under = self.values(source), self.values(by)
        quotients = [over[n] / under[n] for n in over if under.get(n)]
        return statistics.median(quotients) if quotients else None

    def failures(self) -> list[Measurement]:
        return [m for m in self.measurements if m.error]
