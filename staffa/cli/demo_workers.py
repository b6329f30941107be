"""The demo's worker processes: real ones, that may be killed at any time and are replaced."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import click

from staffa.config import Config

__all__ = ["DemoWorkers"]

# A worker that ends by itself cannot do its work; after so many, neither can its successors.
MAX_FAILURES = 3


class DemoWorkers:
    """Some processes of `staffa start` on one queue; what they log goes into a file."""

    def __init__(self, count: int, config: Config, queue: str, limit: int, log: Path) -> None:
        self.log = log
        self.lost = 0
        self._count = count
        self._command = [
            sys.executable, "-m", "staffa", "start", "--queues", f"{queue}={limit}", "--log-level", "warning",
        ]  # fmt: skip
        # Not in the command, which everybody on the machine can see: there may be a password in it.
        self._environment = {
            **os.environ,
            "STAFFA_DATABASE_URL": config.url,
            "STAFFA_PREFIX": config.prefix or "",
        }
        self._running: list[subprocess.Popen[bytes]] = []
        self._failures = 0
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """Who works now."""
        return [process.pid for process in self._running]

    def start(self) -> None:
        """Start as many as are missing."""
        while len(self._running) < self._count:
            with self.log.open("ab") as log:
                # In a group of their own: Ctrl-C is for the demo, which then stops them gracefully.
                self._running.append(
                    subprocess.Popen(
                        self._command,
                        env=self._environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        process_group=0,
                    )
                )

    def replace_dead(self) -> list[str]:
        """Put new workers in the place of those that have ended; returns a sentence about each.

        Raises:
            click.ClickException: They end by themselves, again and again.
        """
        if self._stopping:
            return []
        dead = [process for process in self._running if process.poll() is not None]
        if not dead:
            return []
        self.lost += len(dead)
        self._running = [process for process in self._running if process not in dead]
        self._failures += sum(process.returncode > 0 for process in dead)
        if self._failures >= MAX_FAILURES:
            raise click.ClickException(
                f"the workers end by themselves, {self._failures} of them so far; their log, {self.log}, ends with:\n"
                f"{_tail(self.log)}"
            )
        before = set(self.pids)
        self.start()
        new = [pid for pid in self.pids if pid not in before]
        return [
            f"worker {process.pid} {_fate(process)}; process {pid} takes its place"
            for process, pid in zip(dead, new, strict=True)
        ]

    def stop(self) -> None:
        """Ask all to stop; asked a second time, they put their jobs back at once."""
        self._stopping = True
        for process in self._running:
            if process.poll() is None:
                process.terminate()

    async def stopped(self, patience: float) -> None:
        """Wait until all have ended; those that take longer than `patience` seconds are killed."""
        waiting = [asyncio.to_thread(process.wait, patience) for process in self._running]
        await asyncio.gather(*waiting, return_exceptions=True)
        self.kill()

    def kill(self) -> None:
        """End them now."""
        self._stopping = True
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()


def _fate(process: "subprocess.Popen[bytes]") -> str:
    code = process.returncode
    if code < 0:
        return f"was killed by signal {-code} ({_signal_name(-code)})"
    return f"has ended by itself with exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _tail(log: Path, size: int = 2_000) -> str:
    with log.open("rb") as file:
        file.seek(max(0, os.path.getsize(log) - size))
        return file.read().decode("utf-8", "replace").strip()
