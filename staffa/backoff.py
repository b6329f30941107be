"""How long to wait before trying again: after a failed attempt, and after a failed loop."""

import random
from typing import Literal

__all__ = ["MAX_DELAY", "attempt_delay", "clamp", "exponential", "jitter"]

# Ten years. Whatever a user's backoff returns, the moment must fit into every database's calendar.
MAX_DELAY = 315_360_000.0

_MAX_POWER = 20
_MIN_PAD = 15


def exponential(attempt: int, *, mult: float = 1.0, max_pow: int = 10, min_pad: float = 0.0) -> float:
    """`min_pad + mult * 2 ** attempt`, the exponent capped at `max_pow`."""
    return min_pad + mult * 2.0 ** min(max(attempt, 0), max_pow)


def jitter(value: float, mode: Literal["inc", "dec", "both"] = "both", mult: float = 0.1) -> float:
    """Move a value by a random part of `mult`, so that nodes do not march in step."""
    change = random.random() * mult * value
    match mode:
        case "inc":
            return value + change
        case "dec":
            return value - change
        case "both":
            return value + change if random.random() >= 0.5 else value - change


def attempt_delay(attempt: int, max_attempts: int) -> float:
    """Seconds before a failed job is tried again: 15 + 2 ** attempt and up to 10 % more.

    With more than 20 attempts the exponent is spread over them, so that the last wait is about
    twelve days whatever the number of attempts (the rule of Oban's default backoff).
    """
    if max_attempts > _MAX_POWER:
        attempt = int(attempt / max_attempts * _MAX_POWER + 0.5)
    return jitter(exponential(attempt, max_pow=_MAX_POWER, min_pad=_MIN_PAD), "inc")


def clamp(seconds: float) -> float:
    """A delay that every database can add to a moment: 0 to ten years; not a number counts as 0."""
    return min(max(seconds, 0.0), MAX_DELAY) if seconds == seconds else 0.0
