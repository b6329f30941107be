"""Jobs: what is stored, what is being performed, and the states between which they move."""

import inspect
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from staffa import InvalidJob, Job, JobFailure, JobState, RunningJob, Worker, current_job
from staffa.errors import JobCancelled
from staffa.jobs import COLUMNS, TRANSITIONS, JobOptions

AT = "2026-11-21 09:30:00.000123"
MOMENT = datetime(2026, 11, 21, 9, 30, 0, 123, tzinfo=UTC)

STORED: dict[str, Any] = {
    "id": 7, "state": "retryable", "queue": "mail", "worker": "a.B", "args": '{"n":1}', "meta": '{"k":2}',
    "tags": '["x","y"]', "errors": "[]", "attempt": 2, "max_attempts": 5, "priority": 3,
    "attempted_by": '["node","uuid"]', "inserted_at": AT, "scheduled_at": AT, "attempted_at": AT,
    "completed_at": None, "discarded_at": None, "cancelled_at": None,
}  # fmt: skip


def raw(**options: Any) -> Job:
    """A job made with options of any type, as untyped callers do."""
    said: dict[str, Any] = {"worker": "a.B", **options}
    return Job(**said)


def loaded(**changes: Any) -> Job:
    """A job from a row."""
    row = {**STORED, **changes}
    return Job.loaded([row[column] for column in COLUMNS])


def claimed(**changes: Any) -> RunningJob:
    """A job from a claim's row."""
    row: dict[str, Any] = {
        "id": 7, "worker": "a.B", "args": "{}", "meta": "{}", "tags": "[]", "errors": "[]", "attempt": 1,
        "max_attempts": 20, "priority": 0, "inserted_at": AT, "scheduled_at": AT, "attempted_at": AT, **changes,
    }  # fmt: skip
    return RunningJob.claimed(list(row.values()), "mail", ["node", "uuid"])


def problems(**options: Any) -> dict[str, str]:
    """What is expected of each option that is wrong."""
    with pytest.raises(InvalidJob) as caught:
        raw(**options)
    return {problem.path: problem.expected for problem in caught.value.problems}


# New jobs.


def test_a_new_job_has_defaults_and_no_id() -> None:
    job = Job(worker="a.B")

    assert (job.id, job.state, job.queue, job.worker) == (None, "available", "default", "a.B")
    assert (job.attempt, job.max_attempts, job.priority) == (0, 20, 0)
    assert (job.args, job.meta, job.tags, job.errors, job.attempted_by) == ({}, {}, [], [], [])
    assert not any((job.inserted_at, job.scheduled_at, job.attempted_at, job.schedule_in))
    assert not any((job.completed_at, job.discarded_at, job.cancelled_at))


def test_a_new_job_takes_what_is_said() -> None:
    job = Job(
        worker="a.B",
        args={"n": 1},
        queue="mail",
        max_attempts=3,
        priority=9,
        tags=["x"],
        meta={"k": {"z": 1}},
    )

    assert (job.queue, job.max_attempts, job.priority) == ("mail", 3, 9)
    assert (job.args, job.tags, job.meta) == ({"n": 1}, ["x"], {"k": {"z": 1}})


def test_args_are_what_the_worker_will_get_not_what_was_given() -> None:
    given = {"at": MOMENT, "pair": (1, 2)}

    job = Job(worker="a.B", args=given)
    given["pair"] = (3, 4)

    assert job.args == {"at": "2026-11-21T09:30:00.000123+00:00", "pair": [1, 2]}


def test_everything_that_is_wrong_with_a_job_is_told_at_once() -> None:
    with pytest.raises(InvalidJob) as caught:
        raw(worker="", queue="", max_attempts=0, priority=10, args={"a": b""}, tags=[1], meta=5)

    paths = [problem.path for problem in caught.value.problems]
    assert sorted(paths) == ["args.a", "max_attempts", "meta", "priority", "queue", "tags[0]", "worker"]
    assert str(caught.value).startswith("a job without a worker: 7 problems\n  ")
    assert "  priority: expected an integer from 0 (first) to 9 (last), got: 10\n" in str(caught.value)


def test_one_problem_is_not_called_problems() -> None:
    with pytest.raises(InvalidJob, match=r"^a\.B: 1 problem\n"):
        raw(priority=-1)


def test_an_invalid_job_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="queue"):
        raw(queue="")


@pytest.mark.parametrize("worker", ["", "x" * 128, None, 5, b"a", "a\x00b", "a\ud800"])
def test_a_worker_is_a_name_of_1_to_127_characters(worker: object) -> None:
    assert problems(worker=worker) == {"worker": "a name of 1 to 127 characters"}


@pytest.mark.parametrize("queue", ["", "x" * 128, 5, b"a", ["a"], "a\x00b"])
def test_a_queue_is_a_name_of_1_to_127_characters(queue: object) -> None:
    assert problems(queue=queue) == {"queue": "a name of 1 to 127 characters"}


def test_names_of_127_characters_are_taken() -> None:
    job = Job(worker="w" * 127, queue="ü" * 127)

    assert (len(job.worker), len(job.queue)) == (127, 127)


@pytest.mark.parametrize("max_attempts", [0, -1, 1.5, "3", True, 2**31])
def test_max_attempts_is_a_positive_integer(max_attempts: object) -> None:
    assert problems(max_attempts=max_attempts) == {"max_attempts": "a positive integer"}


@pytest.mark.parametrize("priority", [-1, 10, 1.5, "3", True])
def test_a_priority_is_an_integer_from_0_to_9(priority: object) -> None:
    assert problems(priority=priority) == {"priority": "an integer from 0 (first) to 9 (last)"}


def test_tags_are_trimmed_and_lower_cased_without_blanks_and_doubles_in_their_order() -> None:
    job = raw(tags=["BETA", " alpha ", "beta", "", " ", "\n", "Alpha", "Ünique"])

    assert job.tags == ["beta", "alpha", "ünique"]


@pytest.mark.parametrize("tags", ["word", b"word", {"a"}, 5, {"a": 1}])
def test_tags_are_a_list_of_strings(tags: object) -> None:
    assert set(problems(tags=tags)) <= {"tags", "tags[0]", "tags[1]", "tags[2]", "tags[3]"}


def test_a_bad_tag_is_named_by_its_place() -> None:
    assert problems(tags=["a", 5, "b", None, "\x00"]) == {
        "tags[1]": "a string", "tags[3]": "a string", "tags[4]": "a string"
    }  # fmt: skip


@pytest.mark.parametrize("meta", [5, "text", [1]])
def test_meta_is_a_json_object(meta: object) -> None:
    assert problems(meta=meta) == {"meta": "a JSON object (a mapping with string keys)"}


def test_an_option_that_does_not_exist_is_refused_with_a_suggestion() -> None:
    class Sample(Worker, name="jobs.Sample"):
        def perform(self, job: Job) -> object: ...

    options: Any = {"queu": "mail", "zzz": 1}
    with pytest.raises(InvalidJob) as caught:
        Sample.new({}, **options)

    assert [problem.path for problem in caught.value.problems] == ["queu", "zzz"]
    assert caught.value.problems[0].expected == "an option that exists, did you mean 'queue'?"
    assert caught.value.problems[1].expected.startswith(
        "an option that exists; there are: max_attempts, meta,"
    )


def test_the_options_of_a_job_are_the_same_wherever_they_are_written() -> None:
    written = set(inspect.signature(Job.__init__).parameters) - {"self", "worker", "args"}

    assert written == set(JobOptions.__annotations__)


# Scheduling.


@pytest.mark.parametrize(
    ("said", "seconds"), [(0, 0.0), (60, 60.0), (-2, -2.0), (0.5, 0.5), (timedelta(hours=1), 3600.0)]
)
def test_a_relative_schedule_is_seconds_or_a_timedelta(said: float | timedelta, seconds: float) -> None:
    job = Job(worker="a.B", schedule_in=said)

    assert (job.state, job.schedule_in, job.scheduled_at) == ("scheduled", seconds, None)


@pytest.mark.parametrize(
    "said", [True, "60", float("nan"), float("inf"), timedelta(days=40_000), [1], 1e300, 10**400]
)
def test_a_relative_schedule_of_any_other_kind_is_refused__case_54(said: object) -> None:
    assert problems(schedule_in=said) == {"schedule_in": "seconds or a timedelta, at most a hundred years"}


def test_an_absolute_schedule_is_kept_in_utc_also_when_it_is_over() -> None:
    at = datetime(2001, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))

    job = Job(worker="a.B", scheduled_at=at)

    assert job.state == "scheduled"
    assert job.scheduled_at == at
    assert job.scheduled_at is not None
    assert job.scheduled_at.tzinfo is UTC


def test_a_naive_schedule_is_refused_with_a_sentence_that_says_so() -> None:
    with pytest.raises(
        InvalidJob, match=r"scheduled_at: expected an aware datetime \(with a time zone\), got: a naive"
    ):
        Job(worker="a.B", scheduled_at=datetime(2026, 11, 21))


@pytest.mark.parametrize("said", ["2026-11-21", 5, timedelta(1), MOMENT.date()])
def test_an_absolute_schedule_is_a_datetime(said: object) -> None:
    assert problems(scheduled_at=said) == {"scheduled_at": "an aware datetime"}


@pytest.mark.parametrize("moment", [datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)])
def test_moments_that_no_calendar_holds_are_refused__case_54(moment: datetime) -> None:
    assert problems(scheduled_at=moment) == {"scheduled_at": "a moment between the years 1900 and 9000"}


def test_a_job_has_one_schedule() -> None:
    assert problems(scheduled_at=MOMENT, schedule_in=5) == {
        "schedule_in": "either schedule_in or scheduled_at"
    }


# States.


def test_there_are_the_eight_states_of_oban() -> None:
    assert set(JobState) == {
        *("suspended", "scheduled", "available", "executing", "retryable", "completed", "discarded", "cancelled")
    }  # fmt: skip


def test_every_state_but_suspended_can_be_reached() -> None:
    reached = {state for _, to in TRANSITIONS.values() for state in to} | {"available", "scheduled"}

    assert set(JobState) - reached == {"suspended"}


def test_only_a_running_job_gets_an_outcome_and_only_a_cancel_or_a_rescue_comes_from_outside() -> None:
    from_executing = {verb for verb, (before, _) in TRANSITIONS.items() if "executing" in before}

    assert from_executing == {"complete", "fail", "discard", "snooze", "release", "rescue", "cancel"}
    assert all(TRANSITIONS[verb][0] == {"executing"} for verb in from_executing - {"cancel"})


def test_a_finished_job_moves_only_when_it_is_retried() -> None:
    for verb, (before, _) in TRANSITIONS.items():
        if verb != "retry":
            assert not before & {"completed", "discarded", "cancelled"}, verb


# Rows.


def test_a_stored_job_reads_every_column() -> None:
    job = loaded(completed_at=AT, discarded_at=AT, cancelled_at=AT)

    assert (job.id, job.state, job.queue, job.worker) == (7, "retryable", "mail", "a.B")
    assert (job.args, job.meta, job.tags) == ({"n": 1}, {"k": 2}, ["x", "y"])
    assert (job.attempt, job.max_attempts, job.priority, job.attempted_by) == (2, 5, 3, ["node", "uuid"])
    for moment in (job.inserted_at, job.scheduled_at, job.attempted_at):
        assert moment == MOMENT
    for moment in (job.completed_at, job.discarded_at, job.cancelled_at):
        assert moment == MOMENT


@pytest.mark.parametrize("column", ["meta", "tags", "errors", "attempted_by", "attempted_at"])
def test_a_column_that_is_empty_reads_as_nothing(column: str) -> None:
    assert not getattr(loaded(**{column: None}), column)


@pytest.mark.parametrize("column", ["args", "meta", "tags", "errors", "attempted_by", "scheduled_at"])
def test_a_row_that_a_foreign_program_spoiled_can_be_loaded_and_shown(column: str) -> None:
    job = loaded(**{column: "{spoiled"})

    assert job.id == 7
    assert "a.B" in repr(job)


@pytest.mark.parametrize("column", ["args", "meta"])
@pytest.mark.parametrize("text", ["[1]", "5", "null", '"text"'])
def test_args_that_are_no_object_are_told_from_others(column: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"expected {column} to be a JSON object"):
        getattr(loaded(**{column: text}), column)


def test_a_moment_that_cannot_be_read_is_none() -> None:
    assert loaded(completed_at="yesterday").completed_at is None


def test_failures_are_read_from_either_form_of_the_column() -> None:
    entry = {"at": "2026-11-21T09:30:00.000123Z", "attempt": 2, "error": "ValueError: no\nTraceback: …"}

    for errors in (json.dumps([entry]), json.dumps([json.dumps(entry)])):
        [failure] = loaded(errors=errors).errors
        assert failure == JobFailure(at=MOMENT, attempt=2, error="ValueError: no\nTraceback: …")
        assert failure.summary == "ValueError: no"


@pytest.mark.parametrize(
    ("entry", "failure"),
    [
        (None, JobFailure(None, 0, "null")),
        (1, JobFailure(None, 0, "1")),
        ("x", JobFailure(None, 0, "x")),
        ("[[]]", JobFailure(None, 0, "[[]]")),
        ({}, JobFailure(None, 0, "{}")),
        ({"attempt": 2, "error": "no"}, JobFailure(None, 2, "no")),
        ({"at": "yesterday", "attempt": "2", "error": None}, JobFailure(None, 0, "null")),
        ({"at": "2026-11-21T09:30:00.000123", "attempt": None, "error": "no"}, JobFailure(MOMENT, 0, "no")),
    ],
)
def test_of_an_odd_failure_is_told_what_can_be_read(entry: object, failure: JobFailure) -> None:
    assert loaded(errors=json.dumps([entry])).errors == [failure]


@pytest.mark.parametrize("text", ["{spoiled", "5", "[" * 3_000 + "]" * 3_000])
def test_failures_that_are_no_list_are_one_failure(text: str) -> None:
    [failure] = loaded(errors=text).errors

    assert (failure.at, failure.attempt) == (None, 0)


def test_a_job_shows_what_matters() -> None:
    text = repr(loaded(args=json.dumps({"n": "x" * 500})))

    assert text.startswith("<Job 7 a.B retryable queue='mail' args=")
    assert len(text) < 200


# Running jobs.


def test_a_claimed_job_is_executing_under_its_token() -> None:
    job = claimed()

    assert (job.state, job.queue, job.attempted_by) == ("executing", "mail", ["node", "uuid"])
    assert job.attempted_at == MOMENT
    assert job._token == AT
    assert isinstance(job, Job)


def test_a_running_job_goes_on_until_it_should_stop() -> None:
    job = claimed()

    job.check_cancelled()
    assert not job.cancelled


def test_a_running_job_that_should_stop_is_told_the_reason() -> None:
    job = claimed()

    job._stop_reason = "the node is shutting down"

    assert job.cancelled
    with pytest.raises(JobCancelled, match="the node is shutting down"):
        job.check_cancelled()


def test_there_is_no_current_job_outside_of_jobs() -> None:
    assert current_job() is None
