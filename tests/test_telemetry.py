"""Telemetry: events, their handlers, and the default logger."""

import logging
from collections.abc import Generator, Mapping
from typing import Any, cast

import pytest

from staffa import Job, telemetry
from staffa.errors import InvalidOption
from staffa.jobs import RunningJob

AT = "2026-11-21 09:30:00.000000"


class Ear:
    """A handler that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, data: Mapping[str, Any]) -> None:
        self.heard.append((name, dict(data)))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.heard]


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture(autouse=True)
def _nothing_stays_attached() -> Generator[None, None, None]:
    before = dict(telemetry._handlers)
    yield
    for handler_id in telemetry._handlers.keys() - before:
        telemetry.detach(handler_id)


def a_job() -> Job:
    return RunningJob.claimed((7, "a.B", "{}", "{}", "[]", "[]", 2, 5, 0, AT, AT, AT), "mail", ["n", "u"])


# Handlers.


def test_a_handler_hears_the_events_that_it_asked_for(ear: Ear) -> None:
    telemetry.attach("ear", ear, ["job.stop", "job.start"])

    telemetry.emit("job.start", {"a": 1})
    telemetry.emit("job.lost", {"a": 2})
    telemetry.emit("job.stop", {"a": 3})

    assert ear.heard == [("job.start", {"a": 1}), ("job.stop", {"a": 3})]


def test_a_handler_hears_everything_by_default(ear: Ear) -> None:
    telemetry.attach("ear", ear)

    for name in telemetry.EVENTS:
        assert telemetry.listening(name)
        telemetry.emit(name, {})

    assert ear.names == list(telemetry.EVENTS)


def test_a_detached_handler_hears_nothing_more(ear: Ear) -> None:
    telemetry.attach("ear", ear, ["job.stop"])

    assert telemetry.detach("ear")
    telemetry.emit("job.stop", {})

    assert ear.heard == []
    assert not telemetry.listening("job.stop")
    assert not telemetry.detach("ear")


def test_a_name_is_attached_once(ear: Ear) -> None:
    telemetry.attach("ear", ear, ["job.stop"])

    with pytest.raises(
        InvalidOption, match="expected handler_id to be a name that is not attached yet, got: 'ear'"
    ):
        telemetry.attach("ear", ear)


def test_a_name_that_was_detached_is_free_again(ear: Ear) -> None:
    telemetry.attach("ear", ear, ["job.stop"])
    telemetry.detach("ear")

    telemetry.attach("ear", ear, ["job.start"])

    assert telemetry.listening("job.start")


def test_an_event_that_does_not_exist_is_refused_with_a_suggestion(ear: Ear) -> None:
    with pytest.raises(InvalidOption, match=r"unknown event 'job\.stopp', did you mean 'job\.stop'\?"):
        telemetry.attach("ear", ear, ["job.stopp"])

    assert not telemetry.detach("ear")


def test_a_handler_that_raises_is_logged_and_hurts_nobody(ear: Ear, caplog: pytest.LogCaptureFixture) -> None:
    def broken(name: str, data: Mapping[str, Any]) -> None:
        raise RuntimeError("broken")

    telemetry.attach("broken", broken, ["job.stop"])
    telemetry.attach("ear", ear, ["job.stop"])

    telemetry.emit("job.stop", {})

    assert ear.names == ["job.stop"]
    [record] = caplog.records
    assert record.message == "a telemetry handler failed on job.stop"
    assert record.exc_info


def test_a_handler_may_detach_itself(ear: Ear) -> None:
    def once(name: str, data: Mapping[str, Any]) -> None:
        telemetry.detach("once")
        ear(name, data)

    telemetry.attach("once", once, ["job.stop"])
    telemetry.attach("ear", ear, ["job.stop"])

    telemetry.emit("job.stop", {"n": 1})
    telemetry.emit("job.stop", {"n": 2})

    assert sorted(data["n"] for _, data in ear.heard) == [1, 1, 2]


def test_nobody_needs_to_listen() -> None:
    telemetry.emit("job.stop", {})


# Spans.


def test_a_span_tells_its_start_and_its_stop_with_the_duration_and_more(ear: Ear) -> None:
    telemetry.attach("ear", ear)

    with telemetry.span("plugin", {"plugin": "pruner"}) as extra:
        assert ear.heard == [("plugin.start", {"plugin": "pruner"})]
        extra["result"] = 5

    name, data = ear.heard[-1]
    assert name == "plugin.stop"
    assert data.pop("duration") >= 0
    assert data == {"plugin": "pruner", "result": 5}


def test_a_span_that_fails_tells_the_error_and_passes_it_on(ear: Ear) -> None:
    telemetry.attach("ear", ear)
    error = ValueError("no")

    with pytest.raises(ValueError, match="no"), telemetry.span("plugin", {"plugin": "pruner"}):
        raise error

    assert ear.names == ["plugin.start", "plugin.exception"]
    data = ear.heard[-1][1]
    assert data["error"] is error
    assert data["duration"] >= 0


@pytest.mark.parametrize("ending", ["start", "stop", "exception"])
def test_a_span_is_heard_by_those_who_listen_to_any_part_of_it(ear: Ear, ending: str) -> None:
    telemetry.attach("ear", ear, [f"engine.{ending}"])

    assert telemetry.listening_to_span("engine")
    assert not telemetry.listening_to_span("plugin")


# The table.


def test_every_event_says_something_and_names_its_keys() -> None:
    for name, event in telemetry.EVENTS.items():
        assert event.says.endswith("."), name
        assert event.keys, name
        assert len(set(event.keys)) == len(event.keys), name


def test_the_table_cannot_be_changed() -> None:
    events = cast("dict[str, Any]", telemetry.EVENTS)

    with pytest.raises(TypeError):
        events["new"] = None


# The default logger.


def test_the_default_logger_writes_a_line_per_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "staffa.events")
    telemetry.attach_default_logger()

    telemetry.emit(
        "job.stop",
        {"instance": "i", "node": "n", "job": a_job(), "state": "completed", "duration": 0.5, "result": None},
    )

    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == "job.stop a.B id=7 queue=mail attempt=2/5 state=completed duration=0.500000s"
    assert cast("Any", record).staffa["event"] == "job.stop"
    assert cast("Any", record).staffa["job"].id == 7


@pytest.mark.parametrize(
    ("name", "data", "level"),
    [
        ("job.start", {}, logging.INFO),
        ("job.exception", {"error": ValueError("no")}, logging.WARNING),
        ("job.lost", {}, logging.WARNING),
        ("job.late", {}, logging.WARNING),
        ("plugin.exception", {}, logging.WARNING),
        ("queue.shutdown", {"orphaned": []}, logging.INFO),
        ("queue.shutdown", {"orphaned": [7]}, logging.WARNING),
        ("plugin.stop", {"result": {"completed": 5}}, logging.INFO),
        ("plugin.stop", {"result": {}}, logging.DEBUG),
    ],
)
def test_failures_are_warnings_and_idle_plugins_hardly_worth_a_word(
    caplog: pytest.LogCaptureFixture, name: str, data: dict[str, Any], level: int
) -> None:
    caplog.set_level(logging.DEBUG, "staffa.events")
    telemetry.attach_default_logger()

    telemetry.emit(name, data)

    assert [record.levelno for record in caplog.records] == [level]


def test_the_level_of_ordinary_events_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "staffa.events")
    telemetry.attach_default_logger(logging.DEBUG)

    telemetry.emit("job.start", {})
    telemetry.emit("job.lost", {})

    assert [record.levelno for record in caplog.records] == [logging.DEBUG, logging.WARNING]


def test_an_error_is_logged_in_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    telemetry.attach_default_logger()

    telemetry.emit("job.exception", {"error": ValueError("first\nsecond" + "x" * 1_000)})

    [record] = caplog.records
    assert len(record.message) < 250
    assert "\n" not in record.message
    assert record.message.startswith("job.exception error=ValueError: first")


def test_every_event_with_its_declared_keys_can_be_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "staffa.events")
    telemetry.attach_default_logger()

    for name, event in telemetry.EVENTS.items():
        telemetry.emit(name, {key: a_job() if key == "job" else key for key in event.keys})

    assert {record.message.split()[0] for record in caplog.records} == set(telemetry._LOGGED)


def test_what_a_default_logger_writes_need_not_be_said_by_those_who_emit_it(ear: Ear) -> None:
    telemetry.attach("ear", ear)
    assert not telemetry.logged("job.lost"), "whoever else listens writes no log"

    telemetry.attach_default_logger()
    telemetry.attach_default_logger(handler_id="another")
    assert telemetry.logged("job.lost")
    assert not telemetry.logged("loop.failed")

    telemetry.detach("another")
    assert telemetry.logged("job.lost")
    telemetry.detach_default_logger()
    assert not telemetry.logged("job.lost")


def test_the_default_logger_can_be_detached() -> None:
    telemetry.attach_default_logger()

    assert telemetry.detach_default_logger()
    assert not telemetry.detach_default_logger()


def test_what_cannot_be_called_and_a_lone_name_are_refused() -> None:
    with pytest.raises(InvalidOption, match="expected handler to be something to call"):
        telemetry.attach("test", ["job.stop"])  # type: ignore[arg-type]  # the point

    with pytest.raises(
        InvalidOption, match=r"expected events to be a list of names, like \[.job\.stop.\], got: 'job.stop'"
    ):
        telemetry.attach("test", print, "job.stop")
