"""All rendering: tables, figures and moments for people, JSON for programs."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, TextIO, cast

import click

from staffa import Job, QueueInfo

__all__ = [
    "MOMENTS",
    "ago",
    "cannot_write",
    "clean",
    "counted",
    "duration",
    "figure",
    "job_as_json",
    "moment",
    "one_line",
    "print_json",
    "print_pairs",
    "print_table",
    "queue_as_json",
    "say",
    "states",
    "value_or_text",
]

MOMENTS = ("inserted_at", "scheduled_at", "attempted_at", "completed_at", "discarded_at", "cancelled_at")

# The last column of a table is cut, but not below so many characters.
LAST_COLUMN = 24

# What a terminal would obey instead of showing it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


# Whole outputs.


def say(text: str = "", *, nl: bool = True) -> None:
    """Print to stdout; an output that cannot be written to is told in a sentence."""
    _open_stdout()
    try:
        click.echo(text, nl=nl)
    except BrokenPipeError:  # who read it has seen enough; click ends quietly
        raise
    except OSError as error:
        cannot_write(error)


def _open_stdout() -> TextIO:
    stdout = cast("TextIO | None", sys.stdout)  # None when it was closed before the start
    if stdout is None:
        raise click.ClickException("expected an output to write to, but stdout is closed")
    return stdout


def cannot_write(error: OSError) -> NoReturn:
    """Tell it in a sentence."""
    # What is still in the buffer would be written at the end of the process, and fail again.
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    raise click.ClickException(f"stdout cannot be written to: {error.strerror or error}") from error


def print_json(value: object) -> None:
    """One document; ASCII, so that no terminal's encoding can spoil it."""
    say(json.dumps(value, indent=2))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """A table; `right` names the columns of numbers. Plain where rich is missing, and in pipes."""
    rows = [[clean(cell) for cell in row] for row in rows]
    right = set(right)
    if not (_open_stdout().isatty() and _print_rich(headers, rows, right)):
        _print_plain(headers, rows, right)


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Names and values, one a line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        say(f"  {name:<{width}}  {clean(value)}".rstrip())


def _print_plain(headers: Sequence[str], rows: Sequence[Sequence[str]], right: set[str]) -> None:
    widths = [max(len(row[column]) for row in (headers, *rows)) for column in range(len(headers))]
    for row in (headers, *rows):
        cells = [
            cell.rjust(width) if header in right else cell.ljust(width)
            for cell, width, header in zip(row, widths, headers, strict=True)
        ]
        say("  ".join(cells).rstrip())


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]], right: set[str]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    # Names must stay fit to be copied: only the last column is cut, and where the others alone are too wide for the
    # terminal, lines are as long as they have to be.
    widths = [
        max(len(header), *(len(row[index]) for row in rows), 0) + 2 for index, header in enumerate(headers)
    ]
    others = sum(widths[:-1])
    last = min(widths[-1], max(Console().width - others, LAST_COLUMN))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        justify: Literal["left", "right"] = "right" if header in right else "left"
        table.add_column(header, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[:-1]), Text(one_line(row[-1], last - 2)))
    Console(width=others + last).print(table)
    return True


# Cells.


def clean(text: str) -> str:
    """Text without what a terminal would obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str, limit: int | None = None) -> str:
    """The text in one line, cut to a limit, by default what a terminal has left beside a table's other columns."""
    limit = limit or max(shutil.get_terminal_size().columns - 60, 40)
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def figure(number: float) -> str:
    """1,234; and 0.42 for small ones."""
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.2g}"


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def states(counts: Mapping[str, int]) -> str:
    """`3 available, 1 executing`."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items() if count) or "none"


def duration(seconds: float) -> str:
    """Seconds as people say them: 85 µs, 1.2 ms, 340 ms, 3.4 s, 2 min 5 s, 3 h 4 min, 2 d 3 h."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        milliseconds = seconds * 1e3
        return f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, names in ((86_400, 3_600, "d h"), (3_600, 60, "h min"), (60, 1, "min s")):
        if whole >= large:
            one, other = names.split()
            rest = whole % large // small
            return f"{whole // large} {one} {rest} {other}" if rest else f"{whole // large} {one}"
    return f"{whole} s"


def ago(at: datetime | None) -> str:
    """`3 min ago`, `in 5 s`."""
    if at is None:
        return ""
    passed = (datetime.now(UTC) - at).total_seconds()
    return f"{duration(passed)} ago" if passed >= 0 else f"in {duration(-passed)}"


def moment(at: datetime | None) -> str:
    """A moment in full, and how far away it is."""
    return f"{at:%Y-%m-%d %H:%M:%S.%f} UTC ({ago(at)})" if at is not None else "–"


# The same for programs.


def job_as_json(job: Job) -> dict[str, Any]:
    """Everything about a job."""
    return {
        **{
            name: getattr(job, name) for name in ("id", "state", "queue", "worker", "attempt", "max_attempts")
        },
        **{name: value_or_text(job, name) for name in ("args", "meta", "tags")},
        "priority": job.priority,
        "attempted_by": job.attempted_by,
        **{name: _iso(getattr(job, name)) for name in MOMENTS},
        "errors": [{"at": _iso(e.at), "attempt": e.attempt, "error": e.error} for e in job.errors],
    }


def value_or_text(job: Job, name: Literal["args", "meta", "tags"]) -> Any:
    """What a job has there, or its text as it is stored when another program has spoiled it."""
    try:
        value = getattr(job, name)
        json.dumps(value)
    except (ValueError, RecursionError):
        return str(getattr(job, f"_{name}_text"))
    return value


def queue_as_json(queue: QueueInfo) -> dict[str, Any]:
    """One queue on one node."""
    return {
        **{
            name: getattr(queue, name)
            for name in ("node", "name", "uuid", "limit", "paused", "running", "alive")
        },
        "started_at": _iso(queue.started_at),
        "updated_at": _iso(queue.updated_at),
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
