"""Workers: the code that performs jobs. A decorated function, or a class where there are hooks."""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Literal,
    Never,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from staffa import backoff
from staffa.errors import InvalidJob, InvalidOption, Problem
from staffa.jobs import (
    DEFAULTS,
    MAX_NAME,
    Defaults,
    Job,
    JobOptions,
    RunningJob,
    checked_defaults,
    fill,
    is_name,
)
from staffa.options import did_you_mean, seconds, shown
from staffa.registry import Instance, instance_for, register_worker
from staffa.signature import binder, caller, wants_job

__all__ = ["Backoff", "FunctionJob", "Runner", "Worker", "job"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

Backoff = float | timedelta | Callable[[Job], float]
Runner = Literal["async", "thread"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker's definition says, checked."""

    name: str
    aliases: tuple[str, ...]
    defaults: Defaults
    timeout: float | None
    backoff: Backoff | None
    runner: Runner
    asks_timeout: bool
    """Whether the class has a `timeout` of its own to ask, instead of the option."""


class Worker:
    """The base of worker classes: a subclass says how, its keywords say the rest.

    Example:
        ```python
        from staffa import Discard, Job, Snooze, Worker

        class Webhook(Worker, name="docs.Webhook", queue="webhooks", max_attempts=10, timeout=30):
            async def perform(self, job: Job) -> object:
                match job.args["status"]:
                    case 429:
                        return Snooze(60)
                    case 404:
                        return Discard("the endpoint is gone")

            def backoff(self, job: Job) -> float:
                return min(15 * 2.0**job.attempt, 3600)

        job = Webhook.new({"url": "https://example.com", "status": 200}, priority=1)
        ```

    An `async def perform` runs in the event loop; a plain `def perform` in a thread, so that it can never
    block the loop. There is one instance of the class per process: hooks keep no state.

    Args:
        name: The name in the `worker` column, 1 to 127 characters; by default `module.QualName`. A worker
            that is defined inside of a function must be given one.
        aliases: Older names of the same worker, under which stored jobs may still wait.
        queue, max_attempts, priority, tags, meta: As in `JobOptions`; a job's own options win.
        timeout: Seconds or a `timedelta` that one attempt may take; without limit by default.
        backoff: Seconds or a `timedelta` between attempts, or a function of the job that gives seconds; by
            default 15 + 2 ** attempt and up to 10 % more.
        runner: `"async"` or `"thread"`; by default what `perform` is.
        app: The instance that `enqueue` uses; needed only where a process has several.

    Raises:
        InvalidJob: An option is wrong; all are listed.
    """

    options: ClassVar[WorkerOptions]
    app: ClassVar["Instance | None"] = None

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        queue: str | None = None,
        max_attempts: int | None = None,
        priority: int | None = None,
        tags: Sequence[str] | None = None,
        meta: Mapping[str, object] | None = None,
        timeout: float | timedelta | None = None,
        backoff: Backoff | None = None,
        runner: Runner | None = None,
        app: "Instance | None" = None,
        **unknown: Never,
    ) -> None:
        super().__init_subclass__()
        _refuse_unknown(unknown, cls.__qualname__)
        said = {
            "name": name, "aliases": aliases, "queue": queue, "max_attempts": max_attempts, "priority": priority,
            "tags": tags, "meta": meta, "timeout": timeout, "backoff": backoff, "runner": runner,
        }  # fmt: skip
        cls.options = _checked(cls, {k: v for k, v in said.items() if v is not None})
        if app is not None:
            cls.app = app
        register_worker(cls)

    def perform(self, job: RunningJob, /) -> object:
        """Do the job. Any value but an outcome completes it; any exception but an outcome fails the attempt."""
        raise NotImplementedError(f"{type(self).__qualname__} has no perform")

    def timeout(self, job: Job, /) -> float | timedelta | None:
        """How long this attempt may take, in seconds; None for ever. The option, unless overridden."""
        return self.options.timeout

    def backoff(self, job: Job, /) -> float | timedelta:
        """How long to wait after this failed attempt, in seconds. The option, unless overridden."""
        match self.options.backoff:
            case None:
                return backoff.attempt_delay(job.attempt, job.max_attempts)
            case float() | int() | timedelta() as delay:
                return delay
            case function:
                return function(job)

    @classmethod
    def new(cls, args: Mapping[str, Any] | None = None, /, **options: Unpack[JobOptions]) -> Job:
        """An unsaved job of this worker.

        Args:
            args: What `perform` finds in `job.args`.
            **options: See `JobOptions`; they win over the worker's own.

        Raises:
            InvalidJob: With every problem at once.
        """
        return build(cls, args, options)

    @classmethod
    async def enqueue(
        cls, args: Mapping[str, Any] | None = None, /, *, conn: object = None, **options: Unpack[JobOptions]
    ) -> Job:
        """Store a new job of this worker, through `app`, or the only instance there is.

        Args:
            args: What `perform` finds in `job.args`.
            conn: A connection of your own, in whose transaction the job shall be stored.
            **options: See `JobOptions`.
        """
        job = build(cls, args, options)
        return await instance_for(cls).enqueue(job, conn=conn)


def build(worker: type[Worker], args: object, options: Mapping[str, Any]) -> Job:
    """An unsaved job of a worker: its defaults, then the options."""
    job = Job.__new__(Job)
    problems: list[Problem] = []
    fill(job, worker.options.defaults, args, options, problems)
    job.worker = worker.options.name
    if problems:
        raise InvalidJob(job.worker, problems)
    return job


# Decorated functions.


class FunctionJob(Generic[P, R_co]):
    """What `@job` makes of a function: call it as before, or enqueue it with the same arguments.

    Example:
        ```python
        from staffa import job

        @job(name="docs.greet", queue="mailers")
        async def greet(user_id: int, greeting: str = "hello") -> None:
            print(greeting, user_id)

        unsaved = greet.new(42, greeting="hi")
        later = greet.using(schedule_in=3600).new(42)
        ```
    """

    def __init__(
        self,
        function: Callable[P, R_co],
        worker: type[Worker],
        bind: Callable[..., dict[str, Any]],
        options: JobOptions | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.worker = worker
        self._bind = bind
        self._options: JobOptions = options or {}

    def new(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """An unsaved job that will call the function with these arguments."""
        return build(self.worker, self._bind(*args, **kwargs), self._options)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Store a job that will call the function with these arguments."""
        job = self.new(*args, **kwargs)
        return await instance_for(self.worker).enqueue(job)

    def using(self, **options: Unpack[JobOptions]) -> "FunctionJob[P, R_co]":
        """The same function with options for the jobs made through it: `f.using(priority=1).enqueue(…)`."""
        merged = cast("JobOptions", {**self._options, **options})
        return FunctionJob(self.function, self.worker, self._bind, merged)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<job {self.worker.options.name}>"


# Workers made from functions that want their job receive it first; its enqueue does not take it.
J = TypeVar("J", bound=Job, contravariant=True)


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[RunningJob, P], R_co], /) -> FunctionJob[P, R_co]: ...
    @overload
    def __call__(self, function: Callable[P, R_co], /) -> FunctionJob[P, R_co]: ...


@overload
def job(function: Callable[Concatenate[RunningJob, P], R_co], /) -> FunctionJob[P, R_co]: ...
@overload
def job(function: Callable[P, R_co], /) -> FunctionJob[P, R_co]: ...
@overload
def job(
    *,
    name: str | None = None,
    aliases: Sequence[str] = (),
    queue: str | None = None,
    max_attempts: int | None = None,
    priority: int | None = None,
    tags: Sequence[str] | None = None,
    meta: Mapping[str, object] | None = None,
    timeout: float | timedelta | None = None,
    backoff: Backoff | None = None,
    runner: Runner | None = None,
    app: "Instance | None" = None,
) -> _Decorator: ...


def job(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a worker: `@job`, or `@job(queue="mailers", max_attempts=5)`.

    The function's arguments become the job's `args` by name. When its first parameter is annotated `Job` or
    `RunningJob`, it gets the job there, and its `enqueue` does not take that parameter.

    Example:
        ```python
        from staffa import RunningJob, job

        @job(name="docs.resize", queue="images", max_attempts=5, timeout=60)
        async def resize(job: RunningJob, image_id: int, width: int = 640) -> None:
            print("attempt", job.attempt, "for image", image_id)

        unsaved = resize.new(7, width=320)
        ```

    Args:
        function: Given when it is used without brackets.
        **options: The keywords of `Worker`.

    Raises:
        InvalidJob: An option is wrong; all are listed.
    """
    if function is None:
        return functools.partial(_worker_of, options)
    if not callable(cast("object", function)):
        raise InvalidOption(f"expected @job above a function, got: {shown(function)}", option="function")
    return _worker_of({}, function)


def _worker_of(options: Mapping[str, Any], function: Callable[..., Any]) -> FunctionJob[..., Any]:
    unknown = {name: value for name, value in options.items() if name not in _KEYWORDS}
    _refuse_unknown(unknown, getattr(function, "__qualname__", "?"))
    signature = inspect.signature(function)
    with_job = wants_job(function, signature)
    call = caller(function, signature, with_job)
    is_async = inspect.iscoroutinefunction(inspect.unwrap(function))

    async def perform(self: Worker, job: RunningJob, /) -> object:
        return await call(job)

    def perform_in_thread(self: Worker, job: RunningJob, /) -> object:
        return call(job)

    body = {
        "perform": perform if is_async else perform_in_thread,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__doc__": function.__doc__,
    }
    made = cast(
        "type[Worker]",
        types.new_class(function.__name__, (Worker,), dict(options), lambda space: space.update(body)),
    )
    return FunctionJob(function, made, binder(function, signature, with_job))


_KEYWORDS = (
    "name",
    "aliases",
    "queue",
    "max_attempts",
    "priority",
    "tags",
    "meta",
    "timeout",
    "backoff",
    "runner",
    "app",
)


# Checking a definition.


def _checked(cls: type[Worker], said: Mapping[str, Any]) -> WorkerOptions:
    inherited = getattr(cls, "options", None)
    problems: list[Problem] = []
    name = said["name"] if "name" in said else _default_name(cls, problems)
    if cls.perform is Worker.perform:
        wanted = "a method perform that does the job; a base class that leaves it to others says so with @abstractmethod"
        problems.append(Problem("perform", wanted, "none"))
    names = [name, *_aliases(said["aliases"], problems)]
    if not is_name(name):
        problems.append(Problem("name", f"a name of 1 to {MAX_NAME} characters", shown(name)))
    job_options = {k: v for k, v in said.items() if k in JobOptions.__annotations__}
    defaults = checked_defaults(job_options, problems, base=inherited.defaults if inherited else DEFAULTS)
    timeout = _seconds_of("timeout", said.get("timeout"), problems, least=0.001)
    options = WorkerOptions(
        name=name,
        aliases=tuple(names[1:]),
        defaults=defaults,
        timeout=timeout if "timeout" in said or not inherited else inherited.timeout,
        backoff=_backoff(said.get("backoff", inherited.backoff if inherited else None), problems),
        runner=_runner(cls, said.get("runner"), problems),
        asks_timeout=cls.timeout is not Worker.timeout,
    )
    if problems:
        raise InvalidJob(str(name), problems)
    return options


def _default_name(cls: type[Worker], problems: list[Problem]) -> str:
    if "<locals>" in cls.__qualname__:
        problems.append(
            Problem("name", "a name, for a worker that is defined inside of a function", cls.__qualname__)
        )
    module = cls.__module__
    return f"{_main_name() if module == '__main__' else module}.{cls.__qualname__}"


def _main_name() -> str:
    """The name under which other processes can import what runs as `__main__` here."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _aliases(said: object, problems: list[Problem]) -> list[str]:
    names = list(cast("Sequence[str]", said)) if isinstance(said, (list, tuple)) else None
    if names is not None and all(is_name(name) for name in names):
        return names
    problems.append(
        Problem("aliases", f"a list of names of 1 to {MAX_NAME} characters", shown(cast("Any", said)))
    )
    return []


def _refuse_unknown(unknown: Mapping[str, object], worker: str) -> None:
    problems: list[Problem] = []
    for name, value in unknown.items():
        wanted = f"an option that exists{did_you_mean(name, _KEYWORDS)}"
        problems.append(Problem(name, wanted, f"{name}={shown(value)}"))
    if problems:
        raise InvalidJob(worker, problems)


def _seconds_of(name: str, value: object, problems: list[Problem], least: float) -> float | None:
    if value is None:
        return None
    parsed = seconds(value)
    if parsed is None or parsed < least:
        want = "positive seconds or a timedelta" if least else "seconds or a timedelta, zero or more"
        problems.append(Problem(name, want, shown(value)))
    return parsed


def _backoff(value: Any, problems: list[Problem]) -> Backoff | None:
    if value is None or callable(value):
        return cast("Backoff | None", value)
    return _seconds_of("backoff", value, problems, least=0)


def _runner(cls: type[Worker], said: object, problems: list[Problem]) -> Runner:
    is_async = inspect.iscoroutinefunction(cls.perform)
    if said not in (None, "async", "thread"):
        problems.append(Problem("runner", "'async' or 'thread'", shown(said)))
    elif said == "thread" and is_async:
        problems.append(Problem("runner", "'async' for a coroutine function", "'thread'"))
    elif said == "async" and not is_async:
        problems.append(
            Problem("runner", "'thread' for a plain function, which would block the event loop", "'async'")
        )
    return "async" if is_async else "thread"
