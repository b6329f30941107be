"""What the demo's jobs do: read a Python source file, parse it, and record figures about it.

The figures go into a SQLite file of the demo's own. A job may run twice (its process died after it recorded, and
before its outcome was stored), so recording replaces: the usual way to make a job safe to repeat.
"""

import ast
import os
import sqlite3
import sysconfig
import threading
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from staffa import Job, job

__all__ = ["Slow", "Totals", "parse_file", "prepare_figures", "slowest", "source_files", "totals"]

FOREIGN = ("site-packages", "dist-packages")


@job(max_attempts=3, backoff=1)
def parse_file(job: Job, path: str, figures: str) -> None:
    """Parse one file; a file that does not parse raises, and the attempt fails."""
    _silence_syntax_warnings()
    started = perf_counter()
    with tokenize.open(path) as file:
        source = file.read()
    kinds = [type(node) for node in ast.walk(ast.parse(source, filename=path))]
    functions = kinds.count(ast.FunctionDef) + kinds.count(ast.AsyncFunctionDef)
    seconds = perf_counter() - started
    _connection(figures).execute(
        "INSERT OR REPLACE INTO staffa_demo (run, path, lines, functions, classes, bytes, seconds)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            job.queue, path, len(source.splitlines()), functions, kinds.count(ast.ClassDef),
            os.path.getsize(path), seconds,
        ),
    )  # fmt: skip


@cache
def _silence_syntax_warnings() -> None:
    for category in (SyntaxWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)


_local = threading.local()


def _connection(figures: str) -> sqlite3.Connection:
    """This thread's connection."""
    known: dict[str, sqlite3.Connection] = _local.__dict__.setdefault("connections", {})
    if figures not in known:
        known[figures] = _connect(figures)
    return known[figures]


def _connect(figures: str) -> sqlite3.Connection:
    connection = sqlite3.connect(figures, timeout=30, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


# Around the jobs.


def source_files(limit: int | None = None) -> list[str]:
    """Every Python source file of the standard library and of site-packages; with a limit, spread evenly over them."""
    found = sorted({path for root in _roots() for path in _python_files(root)})
    if limit is None or limit >= len(found):
        return found
    return [found[index * len(found) // limit] for index in range(limit)]


def _roots() -> set[Path]:
    return {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def _python_files(root: Path) -> Iterator[str]:
    # Site-packages inside the standard library's folder are a root of their own, if they are this interpreter's.
    for path in root.rglob("*.py"):
        if not any(part in FOREIGN for part in path.relative_to(root).parts) and path.is_file():
            text = str(path)
            if text.isprintable():  # names that are no text at all cannot be JSON
                yield text


class Totals(NamedTuple):
    """Sums over all files that were parsed."""

    files: int
    lines: int
    functions: int
    classes: int
    bytes: int


class Slow(NamedTuple):
    """A file that took long."""

    path: str
    lines: int
    seconds: float


def prepare_figures(figures: Path) -> None:
    """Make the table."""
    with closing(_connect(str(figures))) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS staffa_demo (run TEXT, path TEXT, lines INTEGER, functions INTEGER,"
            " classes INTEGER, bytes INTEGER, seconds REAL, PRIMARY KEY (run, path))"
        )


def totals(figures: Path, run: str) -> Totals:
    """The sums of one run."""
    rows = _rows(
        figures,
        "SELECT count(*), total(lines), total(functions), total(classes), total(bytes) FROM staffa_demo WHERE run = ?",
        run,
    )
    return Totals(*(int(value) for value in rows[0]))


def slowest(figures: Path, run: str, limit: int = 5) -> list[Slow]:
    """The files that took longest."""
    text = "SELECT path, lines, seconds FROM staffa_demo WHERE run = ? ORDER BY seconds DESC LIMIT ?"
    return [Slow(*row) for row in _rows(figures, text, run, limit)]


def _rows(figures: Path, text: str, *parameters: object) -> list[tuple[Any, ...]]:
    with closing(_connect(str(figures))) as connection:
        return connection.execute(text, parameters).fetchall()
