"""One way to check an option and to say what is wrong with it."""

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import timedelta
from typing import Any, TypeVar

from staffa.errors import InvalidOption

__all__ = ["build", "check", "did_you_mean", "seconds", "shown"]

T = TypeVar("T")


def check(name: str, value: object, ok: bool, want: str) -> None:
    """Raise `InvalidOption` unless `ok`.

    Example:
        >>> check("limit", 0, ok=False, want="a positive integer")
        Traceback (most recent call last):
        staffa.errors.InvalidOption: expected limit to be a positive integer, got: 0
    """
    if not ok:
        raise InvalidOption(f"expected {name} to be {want}, got: {shown(value)}", option=name)


def build(options: type[T], given: Mapping[str, Any], *, of: str) -> T:
    """Make an options dataclass from names and values; a name that it lacks is refused with a suggestion."""
    known = [field.name for field in fields(options) if field.init]  # type: ignore[arg-type]  # T is a dataclass
    for name in given:
        if name not in known:
            raise InvalidOption(f"{of}: unknown option {name!r}{did_you_mean(name, known)}", option=name)
    return options(**given)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'queue'?` or the list of what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


def seconds(value: object) -> float | None:
    """A duration, given as seconds or as a `timedelta`, in seconds; None when it is neither."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf"):
        with suppress(OverflowError):  # an integer may be larger than any float
            return float(value)
    return None


def shown(value: object, limit: int = 80) -> str:
    """A value as an error message shows it: its repr, cut to `limit` characters."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__} without a repr>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
