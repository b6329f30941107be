"""staffa on PostgreSQL, as it comes."""

from typing import ClassVar

from benchmarks.contenders.staffa_base import OnStaffa


class StaffaOnPostgres(OnStaffa):
    variants: ClassVar = {
        "": frozenset({"drain", "threads", "bulk", "single", "within", "latency", "idle", "memory"}),
    }


CONTENDER = StaffaOnPostgres
