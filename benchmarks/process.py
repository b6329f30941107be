"""The processes of one measurement: started, watched and ended by the parent."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import Order
from benchmarks.contender import Contender, Form
from benchmarks.databases import Database
from benchmarks.probe import Probe

TIMEOUT = 300.0


class Failed(Exception):
    """A measurement that cannot be used; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A form of a contender, its fresh database, a folder of its own, and the sizes that were asked for."""

    form: Form
    database: Database
    folder: Path
    jobs: int
    limit: int
    memory_jobs: int

    @property
    def kind(self) -> type[Contender]:
        return self.form.contender

    def probe(self, jobs: int = 0) -> Probe:
        return Probe(self.folder / "probe", jobs)

    def call(self, method: str, *, probe: Probe | None = None, **arguments: Any) -> Any:
        """Call a method of the contender in a process of its own and return what it returns."""
        command = self._command(method, arguments, probe)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode:
            raise Failed(f"{method} ended with {done.returncode}: {ending(done.stderr)}")
        return json.loads(done.stdout)

    @contextmanager
    def running(
        self, method: str, *, probe: Probe, traced: bool = False, **arguments: Any
    ) -> Generator["Worker"]:
        """Run a method that never returns while the block lasts; it is entered when the worker is ready."""
        log = self.folder / "worker.log"
        command = self._command(method, arguments, probe, self.database.trace if traced else None)
        with log.open("w") as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
            worker = Worker(process, log)
            try:
                worker.wait(lambda: probe.ready)
                yield worker
            finally:
                process.kill()

    def _command(
        self, method: str, arguments: dict[str, Any], probe: Probe | None, trace: Path | None = None
    ) -> list[str]:
        order = Order(
            module=self.form.module,
            variant=self.form.variant,
            url=self.database.url,
            limit=self.limit,
            method=method,
            arguments=arguments,
            probe=str(probe.path) if probe else None,
            trace=str(trace) if trace else None,
        )
        return [sys.executable, "-m", "benchmarks.child", json.dumps(asdict(order))]


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that works until it is killed."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self, done: Callable[[], bool], *, every: float = 0.005, timeout: float = TIMEOUT) -> None:
        """Return when `done()` is true; fail when the worker has died or the time is over."""
        end = time.monotonic() + timeout
        while not done():
            if self.process.poll() is not None:
                raise Failed(f"the worker died: {ending(self.log.read_text())}")
            if time.monotonic() > end:
                raise Failed(f"not done after {timeout:.0f} s: {ending(self.log.read_text())}")
            time.sleep(every)


def ending(log: str) -> str:
    """What a process said last, in one line."""
    return " / ".join(line.strip() for line in log.strip().splitlines()[-3:])
