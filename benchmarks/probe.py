"""Shared memory in which job bodies leave their marks, so that watching them costs the database nothing.

A file of 64-bit integers: whether the worker is ready, how many bodies have started, the moments of the
first and the last one (CLOCK_MONOTONIC, nanoseconds), then the moment at which job 0, 1, 2 … started.
"""

import mmap
from pathlib import Path
from threading import Lock
from time import monotonic_ns

READY, BODIES, FIRST, LAST, HEADER = 0, 1, 2, 3, 4

_cells = memoryview(bytearray(8 * HEADER)).cast("q")
_lock = Lock()


def attach(path: Path) -> None:
    """Let the marks of this process go to that file."""
    global _cells
    _cells = _mapped(path)


def ready() -> None:
    """Tell the parent that this worker is running."""
    _cells[READY] = 1


def mark(n: int) -> None:
    """Note that the body of job `n` has started. The first thing a job does."""
    now = monotonic_ns()
    with _lock:
        if not _cells[BODIES]:
            _cells[FIRST] = now
        _cells[BODIES] += 1
        _cells[LAST] = now
    if n < len(_cells) - HEADER:
        _cells[HEADER + n] = now


def bodies() -> int:
    """How many bodies have started so far, for a worker that watches itself."""
    return _cells[BODIES]


class Probe:
    """The parent's side of the file: makes it, with room for the moments of `jobs` jobs, and reads it."""

    def __init__(self, path: Path, jobs: int = 0) -> None:
        path.write_bytes(bytes(8 * (HEADER + jobs)))
        self.path = path
        self._cells = _mapped(path)

    @property
    def ready(self) -> bool:
        return bool(self._cells[READY])

    @property
    def bodies(self) -> int:
        return self._cells[BODIES]

    @property
    def first_ns(self) -> int:
        return self._cells[FIRST]

    @property
    def started_ns(self) -> list[int]:
        """When each job started, 0 for those that did not."""
        return self._cells[HEADER:].tolist()


def _mapped(path: Path) -> memoryview:
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
