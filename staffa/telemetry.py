"""What happens inside, as events that anyone may listen to.

`EVENTS` is the one table of them: every name that is emitted stands in it, with a sentence and the
keys of its data. Durations are seconds. A handler that raises is logged and hurts nobody; an event
that nobody listens to costs one dictionary look-up.
"""

import logging
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from staffa import clock
from staffa.errors import InvalidOption
from staffa.options import check, did_you_mean

__all__ = [
    "EVENTS",
    "Event",
    "Handler",
    "attach",
    "attach_default_logger",
    "detach",
    "detach_default_logger",
    "emit",
    "listening",
    "listening_to_span",
    "logged",
    "span",
]

Handler = Callable[[str, Mapping[str, Any]], object]

log = logging.getLogger("staffa")


@dataclass(frozen=True, slots=True)
class Event:
    """One row of `EVENTS`: what the event says, and the keys of its data."""

    says: str
    keys: tuple[str, ...]


def _span(prefix: str, says: str, keys: tuple[str, ...], stop: tuple[str, ...] = ()) -> dict[str, Event]:
    return {
        f"{prefix}.start": Event(f"{says}: it begins.", keys),
        f"{prefix}.stop": Event(f"{says}: it is done.", (*keys, "duration", *stop)),
        f"{prefix}.exception": Event(f"{says}: it failed.", (*keys, "duration", "error")),
    }


_JOB = ("instance", "node", "job")

EVENTS: Mapping[str, Event] = MappingProxyType(
    {
        "instance.start": Event("An instance runs: its queues claim jobs.", ("instance", "node", "queues")),
        "instance.stop": Event("An instance has stopped.", ("instance", "node", "duration")),
        "job.start": Event("A job's attempt begins.", _JOB),
        "job.stop": Event(
            "An attempt ended as the job wished, and its row is stored; `state` is the row's new state.",
            (*_JOB, "state", "duration", "queue_time", "result"),
        ),
        "job.exception": Event(
            "An attempt failed, and its row is stored; `state` is retryable or discarded.",
            (*_JOB, "state", "duration", "queue_time", "error"),
        ),
        "job.lost": Event(
            "An attempt ended after its claim was gone (rescued, cancelled or deleted); nothing was written.",
            (*_JOB, "state", "duration"),
        ),
        "job.released": Event(
            "A claimed job went back to available without using up the attempt; `reason` says why.",
            (*_JOB, "reason"),
        ),
        "job.late": Event("A job ran past its timeout and could not be stopped yet.", (*_JOB, "timeout")),
        "queue.shutdown": Event(
            "A queue has stopped; `orphaned` lists the ids that the grace period did not suffice for.",
            ("instance", "node", "queue", "elapsed", "orphaned"),
        ),
        **_span(
            "producer",
            "A producer stores outcomes and claims jobs, in one go",
            ("instance", "node", "queue", "acks", "demand"),
            ("claimed",),
        ),
        **_span("stager", "Due jobs become available", ("instance", "node"), ("staged", "into", "queues")),
        **_span("plugin", "A plugin's tick", ("instance", "node", "plugin"), ("result",)),
        **_span(
            "notifier.notify",
            "A message goes to other services and nodes",
            ("instance", "channel", "payloads"),
        ),
        "notifier.switch": Event(
            "How messages reach this instance; `status` is starting, listening, reconnecting or polling.",
            ("instance", "node", "status"),
        ),
        **_span("engine", "One verb of the engine; `verb` is its name", ("instance", "verb"), ("result",)),
        "loop.blocked": Event(
            "The event loop has not answered for a second; `job` and `line` name what blocks it.",
            ("instance", "node", "job", "line", "elapsed"),
        ),
        "loop.failed": Event(
            "An internal loop's tick failed; it goes on after a pause of `delay` seconds.",
            ("service", "error", "delay"),
        ),
    }
)

_handlers: dict[str, tuple[frozenset[str], Handler]] = {}
_by_event: dict[str, tuple[Handler, ...]] = {}
_default_loggers: set[str] = set()


def attach(handler_id: str, handler: Handler, events: Collection[str] | None = None) -> None:
    """Call `handler(name, data)` for events, in the thread that emits them.

    Example:
        ```python
        from staffa import telemetry

        def count(name, data):
            print(name, data["job"].worker, data["state"])

        telemetry.attach("count-jobs", count, ["job.stop", "job.exception"])
        telemetry.detach("count-jobs")
        ```

    Args:
        handler_id: A name to detach it by; unique.
        handler: Called with the event's name and its data; keep it quick.
        events: Names from `EVENTS`; all of them by default.

    Raises:
        InvalidOption: The id is taken, or an event does not exist.
    """
    check("handler_id", handler_id, ok=handler_id not in _handlers, want="a name that is not attached yet")
    check("handler", handler, ok=callable(handler), want="something to call with a name and data")
    check("events", events, ok=not isinstance(events, str), want='a list of names, like ["job.stop"]')
    names = frozenset(EVENTS if events is None else events)
    for name in names - set(EVENTS):
        raise InvalidOption(f"unknown event {name!r}{did_you_mean(name, EVENTS)}", option="events")
    _handlers[handler_id] = (names, handler)
    _index()


def detach(handler_id: str) -> bool:
    """Stop calling a handler; False when none of that name is attached."""
    found = _handlers.pop(handler_id, None) is not None
    _default_loggers.discard(handler_id)
    _index()
    return found


def listening(name: str) -> bool:
    """Whether any handler would hear this event; ask before building costly data."""
    return name in _by_event


def listening_to_span(prefix: str) -> bool:
    """Whether any handler would hear how this span starts, stops or fails."""
    return bool(_by_event) and any(f"{prefix}.{part}" in _by_event for part in ("start", "stop", "exception"))


def logged(name: str) -> bool:
    """Whether a default logger writes this event; where none does, whoever emits it says so in a log line of his own."""
    return bool(_default_loggers) and name in _LOGGED


def emit(name: str, data: Mapping[str, Any]) -> None:
    """Tell an event's handlers. One that raises is logged; the others are still told."""
    for handler in _by_event.get(name, ()):
        try:
            handler(name, data)
        except Exception:
            log.exception("a telemetry handler failed on %s", name)


@contextmanager
def span(prefix: str, data: Mapping[str, Any]) -> Generator[dict[str, Any]]:
    """Emit `prefix.start`, then `.stop` or `.exception` with the duration; yields a dict of extra stop data."""
    extra: dict[str, Any] = {}
    started = clock.monotonic()
    emit(f"{prefix}.start", data)
    try:
        yield extra
    except BaseException as error:
        emit(f"{prefix}.exception", {**data, "duration": clock.monotonic() - started, "error": error})
        raise
    emit(f"{prefix}.stop", {**data, "duration": clock.monotonic() - started, **extra})


def _index() -> None:
    _by_event.clear()
    for names, handler in _handlers.values():
        for name in names:
            _by_event[name] = (*_by_event.get(name, ()), handler)


# The default logger: events as log lines.

_LOGGED = (
    "instance.start",
    "instance.stop",
    "job.start",
    "job.stop",
    "job.exception",
    "job.lost",
    "job.released",
    "job.late",
    "queue.shutdown",
    "plugin.stop",
    "plugin.exception",
)


def attach_default_logger(level: int = logging.INFO, *, handler_id: str = "staffa-default-logger") -> None:
    """Write the events that people want to read to the logger `staffa.events`.

    Each record carries its event's data as `record.staffa` for structured formatters.

    Args:
        level: For ordinary events, default INFO. Failures are warnings.
        handler_id: Detach by this name.
    """
    events = logging.getLogger("staffa.events")

    def write(name: str, data: Mapping[str, Any]) -> None:
        warns = name.endswith((".exception", ".lost", ".late")) or bool(data.get("orphaned"))
        at = max(level, logging.WARNING) if warns else level
        if name == "plugin.stop" and not data.get("result"):
            at = logging.DEBUG
        if events.isEnabledFor(at):
            events.log(at, "%s", _line(name, data), extra={"staffa": {"event": name, **data}})

    attach(handler_id, write, _LOGGED)
    _default_loggers.add(handler_id)


def detach_default_logger(handler_id: str = "staffa-default-logger") -> bool:
    """Undo `attach_default_logger`; False when it was not attached."""
    return detach(handler_id)


def _line(name: str, data: Mapping[str, Any]) -> str:
    parts = [name]
    job = data.get("job")
    if job is not None:
        parts.append(f"{job.worker} id={job.id} queue={job.queue} attempt={job.attempt}/{job.max_attempts}")
    for key, value in data.items():
        if key in ("job", "instance", "node") or value is None:
            continue
        parts.append(f"{key}={value:.6f}s" if isinstance(value, float) else f"{key}={_short(value)}")
    return " ".join(parts)


def _short(value: object) -> str:
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else str(value)
    text = " ".join(text.splitlines())
    return text if len(text) <= 200 else f"{text[:199]}…"
