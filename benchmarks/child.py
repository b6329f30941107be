"""What a child process does: one method of one contender. `process.py` starts it."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import probe, statements
from benchmarks.contender import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which method to call, with what, and where to leave the marks and the statements."""

    module: str
    variant: str
    url: str
    limit: int
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    probe: str | None = None
    trace: str | None = None


def carry_out(order: Order) -> object:
    if order.trace:
        statements.record(Path(order.trace))
    if order.probe:
        probe.attach(Path(order.probe))
    made = load(order.module)(order.url, order.variant, order.limit)
    return getattr(made, order.method)(**order.arguments)


if __name__ == "__main__":
    json.dump(carry_out(Order(**json.loads(sys.argv[1]))), sys.stdout)
