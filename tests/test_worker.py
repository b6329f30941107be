"""Workers: how they are defined, what their jobs get, and how they are found again by name."""

import asyncio
import inspect
import subprocess
import sys
import types
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast, get_overloads

import pytest

import staffa
from staffa import InvalidJob, Job, RunningJob, Worker, job, registry, worker
from staffa.errors import InvalidOption, UnknownInstance, UnknownWorker
from staffa.registry import resolve
from staffa.worker import FunctionJob

AT = "2026-11-21 09:30:00.000000"


class Plain(Worker):
    async def perform(self, job: Job) -> object:
        return job.args


class Full(
    Worker, name="worker.Full", aliases=["old.Full", "older.Full"], queue="mail", max_attempts=3, priority=2,
    tags=["B", "a"], meta={"k": 1}, timeout=timedelta(minutes=1), backoff=5,
):  # fmt: skip
    def perform(self, job: Job) -> object:
        return None


class Child(Full, priority=7, timeout=2):
    pass


class Outer:
    class Inner(Worker):
        def perform(self, job: Job) -> object: ...


@job
async def plain(user_id: int, greeting: str = "hello") -> str:
    """Greets."""
    return f"{greeting} {user_id}"


@job(name="worker.full", queue="mail", max_attempts=5, backoff=lambda job: job.attempt * 2.0)
def full(user_id: int) -> int:
    return user_id


def running(args: str = "{}", name: str = "a.B", attempt: int = 1) -> RunningJob:
    row = (7, name, args, "{}", "[]", "[]", attempt, 20, 0, AT, AT, AT)
    return RunningJob.claimed(row, "default", ["node", "uuid"])


def perform(function: "FunctionJob[Any, Any]", args: str) -> object:
    """What the worker of a function does with stored args."""
    made = function.worker().perform(running(args))
    return asyncio.run(cast("Any", made)) if asyncio.iscoroutine(made) else made


def problems(make: Callable[[], object]) -> dict[str, str]:
    with pytest.raises(InvalidJob) as caught:
        make()
    return {problem.path: problem.expected for problem in caught.value.problems}


def define(**options: Any) -> type[Worker]:
    """A worker class with options of any type, as untyped callers make them."""
    options = {"name": "worker.Sample", **options}
    made = types.new_class("Sample", (Worker,), options, lambda space: space.update(perform=nothing))
    return cast("type[Worker]", made)


def nothing(self: Worker, job: RunningJob, /) -> object: ...


# Names.


def test_a_worker_is_named_by_its_module_and_qualified_name() -> None:
    assert Plain.options.name == f"{__name__}.Plain"
    assert plain.worker.options.name == f"{__name__}.plain"
    assert Outer.Inner.options.name == f"{__name__}.Outer.Inner"


def test_a_worker_can_be_given_a_name_and_older_ones() -> None:
    assert Full.options.name == "worker.Full"
    assert Full.options.aliases == ("old.Full", "older.Full")


def test_a_worker_inside_of_a_function_has_to_be_given_a_name() -> None:
    body = {"__qualname__": "f.<locals>.Local", "perform": nothing}

    def define_class() -> None:
        types.new_class("Local", (Worker,), {}, lambda space: space.update(body))

    def define_function() -> None:
        @job
        def local() -> None:
            pass

    wanted = {"name": "a name, for a worker that is defined inside of a function"}
    assert problems(define_class) == problems(define_function) == wanted


def test_a_named_worker_may_stand_inside_of_a_function() -> None:
    class Local(Worker, name="worker.Local"):
        def perform(self, job: Job) -> object: ...

    assert resolve("worker.Local").__class__ is Local


@pytest.mark.parametrize("name", ["", "x" * 128, 5, "a\x00b", "a\ud800"])
def test_a_name_has_1_to_127_characters_that_can_be_stored(name: object) -> None:
    assert problems(lambda: define(name=name)) == {"name": "a name of 1 to 127 characters"}


@pytest.mark.parametrize("aliases", ["old.Name", ["ok", ""], 5, [5], {"a"}])
def test_aliases_are_a_list_of_names(aliases: object) -> None:
    assert problems(lambda: define(aliases=aliases)) == {"aliases": "a list of names of 1 to 127 characters"}


MAIN = """
from staffa import Worker, job

class Report(Worker):
    def perform(self, job): ...

@job
def greet(): ...

print(Report.options.name, greet.worker.options.name, sep="\\n")
"""


@pytest.mark.parametrize(
    ("file", "command", "module"),
    [
        ("tasks.py", ["tasks.py"], "tasks"),
        ("shop/tasks.py", ["-m", "shop.tasks"], "shop.tasks"),
        ("shop/__main__.py", ["-m", "shop"], "shop.__main__"),
    ],
)
def test_what_runs_as_main_is_named_so_that_other_processes_can_import_it(
    tmp_path: Path, file: str, command: list[str], module: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(MAIN)
    elsewhere = f"from staffa.registry import resolve; print(type(resolve('{module}.greet')).__name__)"

    names = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = subprocess.run(
        [sys.executable, "-c", elsewhere], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert names.stdout.split() == [f"{module}.Report", f"{module}.greet"]
    assert found.stdout.split()[-1] == "greet"


# Options.


def test_a_worker_without_options_has_the_defaults_of_a_job() -> None:
    made = Plain.new({"n": 1})

    assert (made.queue, made.max_attempts, made.priority, made.tags, made.meta) == ("default", 20, 0, [], {})
    assert (made.worker, made.args, made.state) == (f"{__name__}.Plain", {"n": 1}, "available")
    assert Plain().timeout(made) is None


def test_a_job_gets_the_options_of_its_worker() -> None:
    made = Full.new()

    assert (made.queue, made.max_attempts, made.priority) == ("mail", 3, 2)
    assert (made.tags, made.meta, made.args) == (["b", "a"], {"k": 1}, {})


def test_the_options_of_a_call_win_over_those_of_the_worker() -> None:
    made = Full.new({"n": 1}, queue="other", priority=0, tags=[], meta={}, schedule_in=60)

    assert (made.queue, made.max_attempts, made.priority) == ("other", 3, 0)
    assert (made.tags, made.meta, made.state, made.schedule_in) == ([], {}, "scheduled", 60)


def test_a_subclass_inherits_options_but_no_names() -> None:
    made = Child.new()

    assert (made.worker, made.queue, made.max_attempts, made.priority) == (f"{__name__}.Child", "mail", 3, 7)
    assert (made.tags, made.meta) == (["b", "a"], {"k": 1})
    assert (Child.options.timeout, Child.options.backoff) == (2.0, 5.0)
    assert Child.options.aliases == ()
    assert Full.options.timeout == 60.0


def test_everything_that_is_wrong_with_a_definition_is_told_at_once() -> None:
    assert problems(
        lambda: define(
            queue="", max_attempts=0, priority=10, tags=5, meta=5, timeout=0, backoff=-1, runner="fast"
        )
    ) == {
        "queue": "a name of 1 to 127 characters",
        "max_attempts": "a positive integer",
        "priority": "an integer from 0 (first) to 9 (last)",
        "tags": "a list of strings",
        "meta": "a JSON object (a mapping with string keys)",
        "timeout": "positive seconds or a timedelta",
        "backoff": "seconds or a timedelta, zero or more",
        "runner": "'async' or 'thread'",
    }


@pytest.mark.parametrize(
    "make",
    [lambda: define(quee="mail"), lambda: job(**cast("Any", {"name": "x", "quee": "mail"}))(full.function)],
)
def test_a_misspelt_option_is_refused_with_a_suggestion_in_a_class_and_in_a_decorator(make: Any) -> None:
    assert problems(make) == {"quee": "an option that exists, did you mean 'queue'?"}


def test_a_refused_worker_is_not_registered() -> None:
    with pytest.raises(InvalidJob):
        define(name="worker.Refused", priority=10)

    with pytest.raises(UnknownWorker):
        resolve("worker.Refused")


def test_the_runner_is_what_perform_is() -> None:
    assert Plain.options.runner == plain.worker.options.runner == "async"
    assert Full.options.runner == full.worker.options.runner == "thread"


def test_a_coroutine_function_cannot_run_in_a_thread_nor_a_plain_one_in_the_loop() -> None:
    async def coroutine() -> None: ...
    def plain_function() -> None: ...  # fmt: skip

    assert problems(lambda: job(name="worker.x", runner="thread")(coroutine)) == {
        "runner": "'async' for a coroutine function"
    }
    assert problems(lambda: job(name="worker.x", runner="async")(plain_function)) == {
        "runner": "'thread' for a plain function, which would block the event loop"
    }


def test_only_functions_can_be_decorated() -> None:
    with pytest.raises(InvalidOption, match="expected @job above a function, got: 'mailers'"):
        job(cast("Any", "mailers"))


def test_every_keyword_of_a_class_is_one_of_the_decorator() -> None:
    of_class = dict(inspect.signature(Worker.__init_subclass__).parameters)
    of_class.pop("unknown")
    overload = cast("Any", get_overloads(job)[-1])

    assert list(of_class) == list(inspect.signature(overload).parameters) == list(worker._KEYWORDS)
    for name, parameter in inspect.signature(overload).parameters.items():
        assert of_class[name].default == parameter.default, name


# Hooks.


def test_a_timeout_and_a_backoff_are_options() -> None:
    assert Full().timeout(running()) == 60.0
    assert Full().backoff(running()) == 5.0
    assert cast("float", full.worker().backoff(running(attempt=3))) == 6.0


def test_the_default_backoff_is_exponential() -> None:
    assert 17 <= cast("float", Plain().backoff(running())) <= 17 * 1.1


def test_a_method_wins_over_the_option() -> None:
    class Hooks(Worker, name="worker.Hooks", timeout=5, backoff=5):
        def timeout(self, job: Job, /) -> float:
            return job.attempt * 10

        def backoff(self, job: Job, /) -> timedelta:
            return timedelta(seconds=job.attempt)

        def perform(self, job: Job) -> object: ...

    assert Hooks().timeout(running(attempt=2)) == 20
    assert Hooks().backoff(running(attempt=2)) == timedelta(seconds=2)


def test_a_worker_without_perform_is_refused_when_it_is_defined() -> None:
    with pytest.raises(
        InvalidJob, match=r"worker\.Nothing: 1 problem\n  perform: expected a method .*, got: none"
    ):
        types.new_class("Nothing", (Worker,), {"name": "worker.Nothing"})


def test_a_base_class_may_leave_perform_to_its_subclasses() -> None:
    class Base(Worker, ABC, name="worker.Base", queue="mail"):
        @abstractmethod
        def perform(self, job: Job) -> object: ...

    class Concrete(Base, name="worker.Concrete"):
        def perform(self, job: Job) -> object:
            return "done"

    assert Concrete.options.defaults.queue == "mail"
    assert resolve("worker.Concrete").perform(running()) == "done"


# Decorated functions.


def test_a_decorated_function_can_be_called_as_before() -> None:
    assert asyncio.run(plain(42, greeting="hi")) == "hi 42"
    assert full(42) == 42


def test_a_decorated_function_still_looks_like_itself() -> None:
    seen = cast("Any", plain)

    assert (seen.__name__, seen.__doc__, seen.__wrapped__) == ("plain", "Greets.", plain.function)
    assert repr(plain) == f"<job {__name__}.plain>"


def test_arguments_are_stored_by_name() -> None:
    assert plain.new(42).args == {"user_id": 42}
    assert plain.new(42, "hi").args == {"user_id": 42, "greeting": "hi"}
    assert plain.new(greeting="hi", user_id=42).args == {"user_id": 42, "greeting": "hi"}


def test_a_default_is_that_of_the_day_when_the_job_runs() -> None:
    assert plain.new(42).args == {"user_id": 42}
    assert perform(plain, '{"user_id":42}') == "hello 42"


def test_options_can_be_said_per_call_and_the_later_ones_win() -> None:
    later = full.using(schedule_in=60, priority=1).using(priority=2)

    made = later.new(42)

    assert (made.queue, made.priority, made.schedule_in, made.state) == ("mail", 2, 60, "scheduled")
    assert full.new(42).priority == 0


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "missing a required argument: 'user_id'"),
        ((1, "a", 3), {}, "too many positional arguments"),
        ((1,), {"user_id": 2}, "multiple values for argument 'user_id'"),
        ((1,), {"greting": "hi"}, "got an unexpected keyword argument 'greting'"),
    ],
)
def test_wrong_arguments_are_a_type_error_at_the_line_that_enqueues(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    for call in (plain.new, plain.using(priority=1).new):
        with pytest.raises(TypeError, match=rf"^plain\(\): {message}"):
            call(*args, **kwargs)


async def test_enqueue_refuses_wrong_arguments_before_it_looks_for_an_instance() -> None:
    enqueue: Any = plain.enqueue

    with pytest.raises(TypeError, match="missing a required argument"):
        await enqueue()


def test_arguments_that_json_cannot_keep_are_named_by_their_path() -> None:
    assert problems(lambda: plain.new(cast("Any", {1, 2}))) == {"args.user_id": "a value that JSON can hold"}


def keyword_only(*, a: int, b: int = 2) -> object:
    return a, b


def positional_only(a: int, b: int = 2, /, c: int = 3) -> object:
    return a, b, c


def starred(a: int = 1, b: int = 2, *rest: int, c: int = 3) -> object:
    return a, b, rest, c


def double_starred(a: int, /, b: int = 2, **rest: object) -> object:
    return a, b, rest


def everything(a: int, /, b: int = 2, *rest: int, c: int = 3, **more: object) -> object:
    return a, b, rest, c, more


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (keyword_only, (), {"a": 1}),
        (keyword_only, (), {"b": 1, "a": 2}),
        (positional_only, (1,), {}),
        (positional_only, (1, 5), {"c": 6}),
        (positional_only, (1,), {"c": 6}),
        (starred, (), {}),
        (starred, (), {"b": 5}),
        (starred, (), {"b": 5, "c": 6}),
        (starred, (7, 8, 9, 10), {"c": 11}),
        (starred, (7, 8), {}),
        (double_starred, (1,), {}),
        (double_starred, (1,), {"a": 5, "rest": 6, "b": 7}),
        (everything, (1, 2, 3, 4), {"c": 5, "d": 6, "a": 7, "rest": 8, "more": 9}),
        (everything, (1,), {"b": 5, "x": None}),
    ],
)
@pytest.mark.parametrize("with_job", [False, True])
def test_a_job_calls_its_function_with_the_arguments_that_were_enqueued(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], with_job: bool
) -> None:
    expected = function(*args, **kwargs)
    if with_job:
        function = _with_job(function)
    decorated = job(name="worker.called")(function)

    made = decorated.new(*args, **kwargs)

    assert perform(decorated, made._args_text) == expected


def _with_job(function: Any) -> Any:
    """The same function with a first parameter that gets the job."""

    def wrapped(job: RunningJob, /, *args: Any, **kwargs: Any) -> Any:
        assert job.id == 7
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    positional = parameters and parameters[0].kind is inspect.Parameter.POSITIONAL_ONLY
    first = inspect.Parameter(
        "the_job",
        inspect.Parameter.POSITIONAL_ONLY if positional else inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=RunningJob,
    )
    cast("Any", wrapped).__signature__ = signature.replace(parameters=[first, *parameters])
    return wrapped


def test_args_that_no_longer_match_the_function_fail_the_attempt_and_nothing_else() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'old_name'"):
        perform(full, '{"old_name":1}')


def the_job(job: Job, n: int) -> object:
    return job.id, n


def the_running_job(job: RunningJob, n: int) -> object:
    return job.id, n


def the_job_as_text(job: "Job", n: int) -> object:
    return job.id, n


def the_running_job_of_a_module(job: "staffa.RunningJob", n: int) -> object:
    return job.id, n


@pytest.mark.parametrize("function", [the_job, the_running_job, the_job_as_text, the_running_job_of_a_module])
def test_a_first_parameter_annotated_as_the_job_gets_it_and_is_not_enqueued(function: Any) -> None:
    decorated = job(name="worker.with_job")(function)

    assert decorated.new(5).args == {"n": 5}
    assert perform(decorated, '{"n":5}') == (7, 5)
    with pytest.raises(TypeError):
        decorated.new(running(), 5)


def test_postponed_annotations_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "staffa_test_postponed.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "import staffa as s\n"
        "if TYPE_CHECKING:\n"
        "    from staffa import RunningJob\n"
        "@s.job\n"
        "def one(job: RunningJob, n: int): return job.id, n\n"
        "@s.job\n"
        "def two(job: s.Job, n: int): return job.id, n\n"
        "@s.job\n"
        "def three(job: int, n: Job): return job, n\n"
    )  # fmt: skip
    module = __import__("staffa_test_postponed")

    assert module.one.new(5).args == module.two.new(5).args == {"n": 5}
    assert module.three.new(5, 6).args == {"job": 5, "n": 6}


def test_a_first_parameter_that_is_only_called_job_is_an_argument() -> None:
    def called(job: int) -> int:
        return job

    assert job(name="worker.only_called")(called).new(5).args == {"job": 5}


# Finding workers.


def test_a_worker_is_found_by_its_name_and_by_its_older_ones() -> None:
    found = resolve("worker.Full")

    assert type(found) is Full
    assert resolve("old.Full") is found
    assert resolve("older.Full") is found


def test_there_is_one_performer_per_class() -> None:
    assert resolve(f"{__name__}.Plain") is resolve(f"{__name__}.Plain")


def test_a_module_is_imported_to_find_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "staffa_test_shop").mkdir()
    (tmp_path / "staffa_test_shop" / "__init__.py").touch()
    (tmp_path / "staffa_test_shop" / "tasks.py").write_text(
        "from staffa import Worker\nclass Outer:\n    class Ship(Worker):\n        def perform(self, job): ...\n"
    )

    found = resolve("staffa_test_shop.tasks.Outer.Ship")

    assert type(found).__qualname__ == "Outer.Ship"


@pytest.mark.parametrize(
    ("name", "source", "why"),
    [
        ("nothing", None, "no module of that name can be imported"),
        ("staffa_test_nowhere.Ship", None, "no module of that name can be imported"),
        ("Elixir.Some.Worker", None, "no module of that name can be imported"),
        ("..", None, "no module of that name can be imported"),
        ("a b.c-d.E", None, "no module of that name can be imported"),
        ("staffa_test_w1.Gone", "x = 1", "the module staffa_test_w1 does not define it"),
        (
            "staffa_test_w2.Ship",
            "1 / 0",
            "importing staffa_test_w2 failed: ZeroDivisionError: division by zero",
        ),
        ("staffa_test_w3.Ship", "import staffa_test_not_there", "No module named 'staffa_test_not_there'"),
        ("staffa_test_w4.Ship", "def (", "importing staffa_test_w4 failed: SyntaxError"),
        ("staffa_test_w5.Ship", "raise SystemExit(2)", "importing staffa_test_w5 failed: SystemExit: 2"),
    ],
)
def test_a_worker_that_cannot_be_found_is_unknown_and_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str | None, why: str
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    if source is not None:
        (tmp_path / f"{name.partition('.')[0]}.py").write_text(source)

    with pytest.raises(UnknownWorker) as caught:
        resolve(name)

    assert why in str(caught.value)
    assert caught.value.worker == name


# Finding the instance.


class Fake:
    """An instance as workers see it."""

    def __init__(self, name: str, database: str = "sqlite:///jobs.db") -> None:
        self.name = name
        self.database = database
        self.jobs: list[Job] = []
        registry.register_instance(self)

    async def enqueue(self, job: Job, /, *, conn: object = None) -> Job:
        self.jobs.append(job)
        return job


@pytest.fixture
def _no_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_instances", weakref.WeakSet[Fake]())
    monkeypatch.setattr(registry, "_entered", [])


@pytest.mark.usefixtures("_no_instances")
class TestInstances:
    async def test_without_an_instance_enqueue_says_what_to_do(self) -> None:
        with pytest.raises(
            UnknownInstance, match=r"worker\.full cannot enqueue: there is no instance; make one"
        ):
            await full.enqueue(1)

    async def test_the_only_instance_is_used(self) -> None:
        only = Fake("only")

        await full.enqueue(1)
        await Full.enqueue({"n": 2})

        assert [made.args for made in only.jobs] == [{"user_id": 1}, {"n": 2}]

    async def test_with_several_and_no_hint_enqueue_names_them(self) -> None:
        both = [Fake("one"), Fake("other")]

        with pytest.raises(
            UnknownInstance, match=r"cannot tell which instance to use of .one. .*, .other. .*: give app="
        ):
            await full.enqueue(1)

        assert not both[0].jobs

    async def test_of_several_the_one_entered_last_is_used_until_it_is_left(self) -> None:
        one, other, third = Fake("one"), Fake("other"), Fake("third")

        for instance in (one, other):
            registry.enter_instance(instance)
        await full.enqueue(1)
        registry.leave_instance(other)
        await full.enqueue(2)

        assert [len(instance.jobs) for instance in (one, other, third)] == [1, 1, 0]

    async def test_the_instance_that_a_worker_was_given_comes_first(self) -> None:
        given, entered = Fake("given"), Fake("entered")
        registry.enter_instance(entered)

        class Given(Worker, name="worker.Given", app=given):
            def perform(self, job: Job) -> object: ...

        class Inherits(Given, name="worker.Inherits"):
            pass

        await job(name="worker.given", app=given)(full.function).enqueue(1)
        await Given.enqueue()
        await Inherits.enqueue(queue="x")

        assert (len(given.jobs), len(entered.jobs)) == (3, 0)

    async def test_a_closed_instance_of_another_database_keeps_a_job_from_landing_in_the_wrong_one(
        self,
    ) -> None:
        closed, here = Fake("closed", "sqlite:///one.db"), Fake("here", "sqlite:///other.db")
        registry.forget_instance(closed)

        with pytest.raises(
            UnknownInstance, match=r"cannot tell which instance to use of .closed. .*, .here. "
        ):
            await full.enqueue(1)

        assert not here.jobs

    async def test_an_instance_that_is_gone_or_closed_does_not_count(self) -> None:
        gone, closed, here = Fake("gone"), Fake("closed"), Fake("here")
        registry.forget_instance(closed)
        del gone

        await full.enqueue(1)

        assert len(here.jobs) == 1
        assert registry.instances() == [here]

    async def test_an_instance_that_was_closed_is_used_when_there_is_no_other(self) -> None:
        closed = Fake("closed")
        registry.forget_instance(closed)

        await full.enqueue(1)

        assert len(closed.jobs) == 1


def test_options_and_connections_given_to_the_function_itself_say_where_they_belong() -> None:
    with pytest.raises(
        TypeError, match=r"unexpected keyword argument 'schedule_in'; options go through using"
    ):
        full.new(1, schedule_in=60)  # type: ignore[call-arg]  # the point

    with pytest.raises(TypeError, match=r"app\.enqueue\(f\.new\(…\), conn=…\)"):
        full.new(1, conn=None)  # type: ignore[call-arg]  # the point
