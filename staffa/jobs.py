"""Jobs: what is stored, what is being performed, and the states between which they move.

(The module is called `jobs` because `job` is the decorator.)
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Self, TypedDict, cast

from staffa import clock, payload
from staffa.errors import InvalidJob, JobCancelled, Problem
from staffa.options import did_you_mean, seconds, shown

__all__ = [
    "COLUMNS",
    "TRANSITIONS",
    "Job",
    "JobFailure",
    "JobOptions",
    "JobState",
    "RunningJob",
    "current_job",
    "fill",
    "is_name",
    "checked_defaults",
]


class JobState(StrEnum):
    """Where a job is in its life."""

    SUSPENDED = "suspended"
    SCHEDULED = "scheduled"
    AVAILABLE = "available"
    EXECUTING = "executing"
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"


_S = JobState
_UNFINISHED = frozenset({_S.SUSPENDED, _S.SCHEDULED, _S.AVAILABLE, _S.EXECUTING, _S.RETRYABLE})

# verb: (states it moves from, states it moves to). Each verb of the engine asks for its from-states in SQL,
# and the contract suite walks the whole table on every engine.
TRANSITIONS: Final[Mapping[str, tuple[frozenset[JobState], frozenset[JobState]]]] = MappingProxyType(
    {
        "stage": (frozenset({_S.SCHEDULED, _S.RETRYABLE}), frozenset({_S.AVAILABLE})),
        "claim": (frozenset({_S.AVAILABLE}), frozenset({_S.EXECUTING, _S.DISCARDED})),
        "complete": (frozenset({_S.EXECUTING}), frozenset({_S.COMPLETED})),
        "fail": (frozenset({_S.EXECUTING}), frozenset({_S.RETRYABLE, _S.DISCARDED})),
        "discard": (frozenset({_S.EXECUTING}), frozenset({_S.DISCARDED})),
        "snooze": (frozenset({_S.EXECUTING}), frozenset({_S.SCHEDULED})),
        "release": (frozenset({_S.EXECUTING}), frozenset({_S.AVAILABLE, _S.SCHEDULED})),
        "rescue": (frozenset({_S.EXECUTING}), frozenset({_S.AVAILABLE, _S.DISCARDED})),
        "cancel": (_UNFINISHED, frozenset({_S.CANCELLED})),
        "retry": (frozenset(_S) - {_S.AVAILABLE, _S.EXECUTING}, frozenset({_S.AVAILABLE})),
    }
)

# The columns of a stored job, in the order in which `Job.loaded` reads them.
COLUMNS: Final = (
    "id", "state", "queue", "worker", "args", "meta", "tags", "errors", "attempt", "max_attempts", "priority",
    "attempted_by", "inserted_at", "scheduled_at", "attempted_at", "completed_at", "discarded_at", "cancelled_at",
)  # fmt: skip

MAX_NAME = 127
MAX_TAGS = 65_535
MAX_INT32 = 2**31 - 1
_CENTURY = timedelta(days=36_525).total_seconds()


class JobOptions(TypedDict, total=False):
    """What may be said about a job when it is made, all of it optional.

    `queue` (default `"default"`), `max_attempts` (20), `priority` (0 is first, 9 last), `tags`
    (lower-cased, without doubles), `meta` (a JSON object), and one of `schedule_in` (seconds or a
    `timedelta` from now) and `scheduled_at` (an aware datetime).
    """

    queue: str
    max_attempts: int
    priority: int
    tags: Sequence[str]
    meta: Mapping[str, object]
    scheduled_at: datetime
    schedule_in: float | timedelta


@dataclass(frozen=True, slots=True)
class JobFailure:
    """One entry of `job.errors`: when which attempt failed, and how.

    `error` is one line that says what happened, then the traceback when there is one. In an entry that another
    program has spoiled, `at` is None or `attempt` is 0 where it cannot be read.
    """

    at: datetime | None
    attempt: int
    error: str

    @property
    def summary(self) -> str:
        """The first line of `error`."""
        return self.error.partition("\n")[0]


class _Moment:
    """A moment of a job: text as it came from the database until somebody looks at it."""

    def __init__(self, slot: str) -> None:
        self.slot = slot

    def __get__(self, job: "Job", owner: "type[Job]") -> datetime | None:
        value = getattr(job, self.slot)
        if type(value) is str:
            value = _parsed(value)
            setattr(job, self.slot, value)
        return cast("datetime | None", value)

    def __set__(self, job: "Job", value: datetime | None) -> None:
        setattr(job, self.slot, value)


class Job:
    """A unit of work: the name of its worker, its arguments, and where it stands.

    A job is made by a worker (`Email.new(…)`, `send_welcome.new(…)`), or raw, for a worker that is
    defined elsewhere. It is stored by `app.enqueue`, which returns it with its `id`.

    Example:
        ```python
        from staffa import Job

        job = Job(worker="billing.tasks.Charge", args={"invoice": 7}, queue="billing", schedule_in=60)
        print(job.state, job.args["invoice"])
        ```

    Args:
        worker: The name under which the worker is known, 1 to 127 characters.
        args: A JSON object of at most 1 MB. Aware datetimes, dates, UUIDs, Decimals, Enums, dataclasses
            and msgspec or pydantic models inside it become JSON the same way on every database.
        **options: See `JobOptions`.

    Raises:
        InvalidJob: With every problem at once, each with the path to it.
    """

    __slots__ = (
        "_args", "_args_text", "_attempted_at", "_cancelled_at", "_completed_at", "_discarded_at", "_errors",
        "_errors_text", "_inserted_at", "_meta", "_meta_text", "_scheduled_at", "_tags_text", "_tentative", "attempt", "attempted_by",
        "id", "max_attempts", "priority", "queue", "schedule_in", "state", "worker",
    )  # fmt: skip

    inserted_at = _Moment("_inserted_at")
    scheduled_at = _Moment("_scheduled_at")
    attempted_at = _Moment("_attempted_at")
    completed_at = _Moment("_completed_at")
    discarded_at = _Moment("_discarded_at")
    cancelled_at = _Moment("_cancelled_at")

    id: int | None
    state: str
    queue: str
    worker: str
    attempt: int
    max_attempts: int
    priority: int
    attempted_by: list[str]
    schedule_in: float | None
    _inserted_at: str | datetime | None
    _scheduled_at: str | datetime | None
    _attempted_at: str | datetime | None
    _completed_at: str | datetime | None
    _discarded_at: str | datetime | None
    _cancelled_at: str | datetime | None
    # Stored in a user's transaction, of whose end we know nothing: it may be enqueued again.
    _tentative: bool
    _args: dict[str, Any] | None
    _meta: dict[str, Any] | None
    _errors: list[JobFailure] | None
    _args_text: str
    _meta_text: str
    _tags_text: str
    _errors_text: str

    def __init__(
        self,
        *,
        worker: str,
        args: object = None,
        queue: str | None = None,
        max_attempts: int | None = None,
        priority: int | None = None,
        tags: Sequence[str] | None = None,
        meta: Mapping[str, object] | None = None,
        scheduled_at: datetime | None = None,
        schedule_in: float | timedelta | None = None,
    ) -> None:
        said = {
            "queue": queue, "max_attempts": max_attempts, "priority": priority, "tags": tags, "meta": meta,
            "scheduled_at": scheduled_at, "schedule_in": schedule_in,
        }  # fmt: skip
        problems: list[Problem] = []
        if not is_name(worker):
            problems.append(Problem("worker", _NAME, shown(worker)))
        fill(self, DEFAULTS, args, {k: v for k, v in said.items() if v is not None}, problems)
        self.worker = worker
        if problems:
            raise InvalidJob(worker if isinstance(cast("object", worker), str) else "", problems)

    @classmethod
    def loaded(cls, row: Sequence[Any]) -> Self:
        """A job from a row of `COLUMNS`; the JSON in it is decoded when it is first looked at."""
        job = cls.__new__(cls)
        (
            job.id, job.state, job.queue, job.worker, job._args_text, job._meta_text, job._tags_text, job._errors_text,
            job.attempt, job.max_attempts, job.priority, attempted_by, job._inserted_at, job._scheduled_at,
            job._attempted_at, job._completed_at, job._discarded_at, job._cancelled_at,
        ) = row  # fmt: skip
        job._args = job._meta = job._errors = None
        job.attempted_by = _names(attempted_by)
        job.schedule_in = None
        return job

    @property
    def args(self) -> dict[str, Any]:
        """The arguments as the worker gets them: JSON's own types, a copy of what was given."""
        if self._args is None:
            self._args = _object(self._args_text, "args")
        return self._args

    @property
    def meta(self) -> dict[str, Any]:
        """Data about the job: the user's, and what Staffa notes there (`snoozed`, `rescued`)."""
        if self._meta is None:
            self._meta = {} if self._meta_text in ("{}", None) else _object(self._meta_text, "meta")
        return self._meta

    @property
    def tags(self) -> list[str]:
        """Words to find the job by."""
        return [] if self._tags_text in ("[]", None) else payload.decode(self._tags_text)

    @property
    def errors(self) -> list[JobFailure]:
        """Its failures, the oldest first; the first and the last 19 are kept."""
        if self._errors is None:
            self._errors = [] if self._errors_text in ("[]", None) else _failures(self._errors_text)
        return self._errors

    def __repr__(self) -> str:
        text = str(self._args_text)  # not decoded: a repr must not fail
        args = text if len(text) <= 80 else f"{text[:79]}…"
        return (
            f"<{type(self).__name__} {self.id} {self.worker} {self.state} queue={self.queue!r} args={args}>"
        )


class RunningJob(Job):
    """A job while it is being performed.

    A worker's `perform` receives one; inside it, `current_job()` returns the same one.
    """

    __slots__ = ("_stop_reason", "_token")

    id: int  # pyright: ignore[reportIncompatibleVariableOverride]  # a claimed job is stored: it has one
    _stop_reason: str | None
    _token: str

    @classmethod
    def claimed(cls, row: Sequence[Any], queue: str, by: list[str]) -> Self:
        """A job from the row that a claim returns; its `attempted_at` is the token of the claim."""
        job = cls.__new__(cls)
        (
            job.id, job.worker, job._args_text, job._meta_text, job._tags_text, job._errors_text, job.attempt,
            job.max_attempts, job.priority, job._inserted_at, job._scheduled_at, token,
        ) = row  # fmt: skip
        job.state = "executing"
        job.queue = queue
        job._args = job._meta = job._errors = None
        job.attempted_by = by
        job._completed_at = job._discarded_at = job._cancelled_at = job.schedule_in = None
        job._attempted_at = job._token = token
        job._stop_reason = None
        return job

    @property
    def cancelled(self) -> bool:
        """Whether the job should stop: it was cancelled, lost its claim, ran out of time, or the node shuts down.

        Coroutines are interrupted anyway. A plain function in a thread cannot be: it has to ask.
        """
        return self._stop_reason is not None

    def check_cancelled(self) -> None:
        """Raise `JobCancelled` when the job should stop; call it now and then in long synchronous work.

        Raises:
            JobCancelled: With the reason.
        """
        if self._stop_reason is not None:
            raise JobCancelled(self._stop_reason)


current: ContextVar[RunningJob | None] = ContextVar("staffa_current_job", default=None)


def current_job() -> RunningJob | None:
    """The job that the calling code runs in, in a coroutine or in a thread; None outside of a job.

    Example:
        ```python
        from staffa import current_job, job

        @job(name="docs.whoami")
        def whoami() -> None:
            running = current_job()
            assert running is not None
            print(running.id, running.attempt)
        ```
    """
    return current.get()


@dataclass(frozen=True, slots=True)
class Defaults:
    """Checked options, ready to be copied into a job: what a worker's definition boils down to."""

    queue: str = "default"
    max_attempts: int = 20
    priority: int = 0
    tags_text: str = "[]"
    meta_text: str = "{}"


DEFAULTS: Final = Defaults()


def fill(
    job: Job, defaults: Defaults, args: object, options: Mapping[str, Any], problems: list[Problem]
) -> None:
    """Give an unsaved job its fields; what is wrong is added to `problems`."""
    job._tentative = False
    job.id = job._inserted_at = job._scheduled_at = job._attempted_at = None
    job._completed_at = job._discarded_at = job._cancelled_at = job.schedule_in = None
    job._args = job._meta = job._errors = None
    job.attempt = 0
    job.attempted_by = []
    job.state = "available"
    job.queue = defaults.queue
    job.max_attempts = defaults.max_attempts
    job.priority = defaults.priority
    job._tags_text = defaults.tags_text
    job._meta_text = defaults.meta_text
    job._errors_text = "[]"
    job._args_text = "{}" if args is None else payload.encode_object(args, "args", problems)
    if options:
        _apply(job, options, problems)


def checked_defaults(
    options: Mapping[str, Any], problems: list[Problem], base: Defaults = DEFAULTS
) -> Defaults:
    """A worker's own options, checked, over those it inherits: its defaults."""
    job = Job.__new__(Job)
    fill(job, base, None, options, problems)
    return Defaults(job.queue, job.max_attempts, job.priority, job._tags_text, job._meta_text)


_NAME = f"a name of 1 to {MAX_NAME} characters"


def _apply(job: Job, options: Mapping[str, Any], problems: list[Problem]) -> None:
    for name, value in options.items():
        match name:
            case "queue" if is_name(value):
                job.queue = value
            case "queue":
                problems.append(Problem(name, _NAME, shown(value)))
            case "max_attempts" if _is_int(value, 1, MAX_INT32):
                job.max_attempts = value
            case "max_attempts":
                problems.append(Problem(name, "a positive integer", shown(value)))
            case "priority" if _is_int(value, 0, 9):
                job.priority = value
            case "priority":
                problems.append(Problem(name, "an integer from 0 (first) to 9 (last)", shown(value)))
            case "tags":
                job._tags_text = _tags(value, problems)
            case "meta":
                job._meta_text = payload.encode_object(value, "meta", problems)
            case "scheduled_at":
                _schedule_at(job, value, problems)
            case "schedule_in":
                _schedule_in(job, value, problems)
            case _:
                suggestion = did_you_mean(name, JobOptions.__annotations__)
                problems.append(Problem(name, f"an option that exists{suggestion}", f"{name}={shown(value)}"))
    if "scheduled_at" in options and "schedule_in" in options:
        problems.append(Problem("schedule_in", "either schedule_in or scheduled_at", "both"))


def _schedule_at(job: Job, value: object, problems: list[Problem]) -> None:
    if not isinstance(value, datetime):
        problems.append(Problem("scheduled_at", "an aware datetime", shown(value)))
    elif value.tzinfo is None:
        problems.append(
            Problem("scheduled_at", "an aware datetime (with a time zone)", f"a naive one, {shown(value)}")
        )
    elif not 1900 <= value.year <= 9000:
        problems.append(Problem("scheduled_at", "a moment between the years 1900 and 9000", shown(value)))
    else:
        job.scheduled_at = value.astimezone(UTC)
        job.state = "scheduled"


def _schedule_in(job: Job, value: object, problems: list[Problem]) -> None:
    delay = seconds(value)
    if delay is None or abs(delay) > _CENTURY:
        problems.append(
            Problem("schedule_in", "seconds or a timedelta, at most a hundred years", shown(value))
        )
    else:
        job.schedule_in = delay
        job.state = "scheduled"


def _tags(value: object, problems: list[Problem]) -> str:
    tags: dict[str, None] = {}
    if isinstance(value, str) or not isinstance(value, Sequence):
        problems.append(Problem("tags", "a list of strings", shown(value)))
        return "[]"
    for index, tag in enumerate(cast("Sequence[object]", value)):
        if not isinstance(tag, str) or not _storable(tag):
            problems.append(Problem(f"tags[{index}]", "a string", shown(tag)))
        elif tag.strip():
            tags[tag.strip().lower()] = None
    text = payload.encode(list(tags))
    if len(text) > MAX_TAGS:
        problems.append(Problem("tags", f"at most {MAX_TAGS:,} bytes of tags", f"{len(text):,}"))
    return text


def is_name(value: object) -> bool:
    """Whether a value may be the name of a queue or a worker."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and _storable(value)


def _is_int(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _storable(text: str) -> bool:
    return payload.storable(text, len(text)) == text


def _parsed(text: str) -> datetime | None:
    # A foreign program may have written anything; that must not keep the row from being read.
    try:
        return clock.from_text(text)
    except ValueError:
        return None


def _names(text: str | None) -> list[str]:
    try:
        names: object = payload.decode(text) if text else []
    except ValueError:  # as above
        return []
    return cast("list[str]", names) if isinstance(names, list) else []


def _object(text: str | None, name: str) -> dict[str, Any]:
    value = payload.decode_stored(text or "{}")
    if not isinstance(value, dict):
        raise ValueError(f"expected {name} to be a JSON object, got: {shown(value)}")
    return cast("dict[str, Any]", value)


def _failures(text: str) -> list[JobFailure]:
    try:
        entries: object = payload.decode(text)
    except (ValueError, RecursionError):  # as above
        return [JobFailure(at=None, attempt=0, error=text)]
    return [
        _failure(entry)
        for entry in (cast("list[object]", entries) if isinstance(entries, list) else [entries])
    ]


def _failure(entry: object) -> JobFailure:
    """What can be read of an entry, whoever wrote it."""
    if isinstance(entry, str):
        try:
            inner: object = payload.decode(entry)
        except (ValueError, RecursionError):
            return JobFailure(at=None, attempt=0, error=entry)
        entry = entry if isinstance(inner, str) else inner
    if not isinstance(entry, dict):
        return JobFailure(at=None, attempt=0, error=_text(entry))
    fields = cast("dict[str, object]", entry)
    attempt = fields.get("attempt")
    return JobFailure(
        at=_failed_at(fields.get("at")),
        attempt=attempt if isinstance(attempt, int) and not isinstance(attempt, bool) else 0,
        error=_text(fields.get("error", fields)),
    )


def _failed_at(value: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _text(value: object) -> str:
    return value if isinstance(value, str) else payload.encode(value)
