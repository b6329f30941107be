"""staffa on its embedded default: one SQLite file, at its own `synchronous=FULL` and at NORMAL."""

from typing import ClassVar

from benchmarks.contenders.staffa_base import OnStaffa


class StaffaOnSQLite(OnStaffa):
    variants: ClassVar = {
        "full": frozenset({"drain", "threads", "bulk", "single", "within", "latency", "idle", "memory"}),
        "normal": frozenset({"drain", "bulk", "single"}),
    }

    def __init__(self, url: str, variant: str, limit: int) -> None:
        super().__init__(f"{url}?synchronous={variant}", variant, limit)


CONTENDER = StaffaOnSQLite
