"""Progress: a bar of rich's where it is installed, of click's where not, and lines where there is no terminal."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

import click

from staffa.cli.render import states

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

__all__ = ["Progress", "progress"]

LINE_EVERY = 2.0


class Progress(Protocol):
    """How far something has come."""

    def update(self, done: int, counts: Mapping[str, int]) -> None:
        """So many are done; `counts` says more."""
        ...

    def note(self, text: str) -> None:
        """Say something in between."""
        ...

    def close(self) -> None:
        """Leave the terminal in order; safe to call twice."""
        ...


def progress(total: int, *, err: bool) -> Progress:
    """The best that the output (stderr if `err`) can show."""
    stream = cast(
        "TextIO | None", sys.stderr if err else sys.stdout
    )  # None when it was closed before the start
    if stream is None or not stream.isatty():
        return Lines(total, err)
    with suppress(ImportError):
        return RichBar(total, err)
    return ClickBar(total, err)


class Lines:
    """A line now and then."""

    def __init__(self, total: int, err: bool) -> None:
        self._total = total
        self._err = err
        self._told_at = time.monotonic()

    def update(self, done: int, counts: Mapping[str, int]) -> None:
        """Print a line if the last one was a while ago."""
        if time.monotonic() - self._told_at >= LINE_EVERY:
            self._told_at = time.monotonic()
            self.note(f"{done:,} of {self._total:,} jobs are done ({states(counts)})")

    def note(self, text: str) -> None:
        """Print it."""
        click.echo(text, err=self._err)

    def close(self) -> None:
        """Nothing is left open."""


class RichBar:
    """A bar with colours and the time that is left."""

    def __init__(self, total: int, err: bool) -> None:
        from rich import progress as rich
        from rich.console import Console

        self._bar = rich.Progress(
            rich.BarColumn(bar_width=30),
            rich.TextColumn("{task.completed:,.0f} of {task.total:,.0f} jobs"),
            rich.TimeElapsedColumn(),
            rich.TextColumn("{task.description}"),
            console=Console(stderr=err),
        )
        self._task = self._bar.add_task("", total=total)
        self._bar.start()

    def update(self, done: int, counts: Mapping[str, int]) -> None:
        """Move it."""
        rest = {state: count for state, count in counts.items() if state not in ("available", "completed")}
        self._bar.update(self._task, completed=done, description=states(rest) if rest else "")

    def note(self, text: str) -> None:
        """Print above it."""
        self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave it as it is."""
        self._bar.stop()


class ClickBar:
    """A plain bar."""

    def __init__(self, total: int, err: bool) -> None:
        self._err = err
        self._bar: ProgressBar[Any] = click.progressbar(length=total, file=sys.stderr if err else sys.stdout)
        self._bar.render_progress()

    def update(self, done: int, counts: Mapping[str, int]) -> None:
        """Move it."""
        self._bar.update(done - self._bar.pos)

    def note(self, text: str) -> None:
        """Print below it; it goes on in the next line."""
        click.echo(f"\n{text}", err=self._err)

    def close(self) -> None:
        """Go to the next line."""
        self._bar.render_finish()
