"""Real processes that share a file: started, signalled, killed, by pid."""

import os
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["Process"]


class Process:
    """A Python process running `code` in the repository's folder; what it logs goes to a file."""

    def __init__(self, code: str, url: str, folder: Path, **environment: str) -> None:
        self._log = folder / f"process-{len(list(folder.glob('process-*')))}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"import logging; logging.basicConfig(level=20)\n{code}"],
                env={**os.environ, "STAFFA_DATABASE_URL": url, "NOTES": str(folder / "notes"), **environment},
                cwd=Path(__file__).parents[2],
                stderr=log,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def said(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 120) -> int:
        """Wait for its end; returns its exit code, negative for a signal."""
        return self._process.wait(timeout)

    def kill(self) -> None:
        """kill -9, as the kernel does when memory runs out."""
        self._process.kill()
        self._process.wait()
