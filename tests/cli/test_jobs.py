"""`staffa jobs`."""

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from staffa import Job, Staffa, job

from .conftest import Ask, Run

KEYS = {
    *(
        "id",
        "state",
        "queue",
        "worker",
        "args",
        "meta",
        "tags",
        "errors",
        "attempt",
        "max_attempts",
        "priority",
    ),
    *(
        "attempted_by",
        "inserted_at",
        "scheduled_at",
        "attempted_at",
        "completed_at",
        "discarded_at",
        "cancelled_at",
    ),
}


@job(name="tests.cli.fails", max_attempts=1)
def fails(colour: str) -> None:
    raise ValueError(f"no {colour} luck")


@pytest.fixture
def discarded(project: Path) -> Job:
    """A job that was performed, failed, and ended."""

    async def run() -> Job:
        async with Staffa(f"sqlite:///{project}/jobs.db", queues={"default": 1}) as app:
            stored = await app.enqueue(fails.using(tags=["a"], meta={"b": 1}).new("\x1b[31mred"))
            assert stored.id is not None
            async with asyncio.timeout(60):
                while True:
                    found = await app.get_job(stored.id)
                    if found is not None and found.state == "discarded":
                        break
                    await asyncio.sleep(0.01)
        await app.close()
        return found

    return asyncio.run(run())


@pytest.fixture
def waiting(ask: Ask) -> None:
    """Three jobs that nobody has touched."""
    ask(
        lambda app: app.enqueue_all(
            [
                Job(worker="shop.Ship", args={"order": 1}),
                Job(worker="shop.Mail", args={"to": "Ada"}, queue="mail"),
                Job(worker="shop.Ship", args={"order": 2}, schedule_in=3600),
            ]
        )
    )


def listed(staffa: Run, *arguments: str) -> list[int]:
    jobs: list[dict[str, Any]] = json.loads(staffa("jobs", "list", "tasks:app", "--json", *arguments).stdout)
    return [one["id"] for one in jobs]


@pytest.mark.usefixtures("waiting")
def test_list_shows_the_newest_first_and_says_when_there_are_more(staffa: Run) -> None:
    result = staffa("jobs", "list", "tasks:app", "--limit", "2")

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["ID", "STATE", "QUEUE", "WORKER", "ATTEMPT", "WHEN", "ARGS"]
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["3", "scheduled", "default", "shop.Ship"],
        ["2", "available", "mail", "shop.Mail"],
    ]
    assert "in 59 min" in lines[1] or "in 1 h" in lines[1]
    assert '{"to": "Ada"}' in lines[2]
    assert "--limit shows more" in lines[3]


@pytest.mark.usefixtures("waiting")
def test_list_filters_by_state_queue_and_worker(staffa: Run) -> None:
    assert listed(staffa) == [3, 2, 1]
    assert listed(staffa, "--state", "available") == [2, 1]
    assert listed(staffa, "--state", "available", "--state", "scheduled", "--queue", "default") == [3, 1]
    assert listed(staffa, "--worker", "shop.Mail") == [2]
    assert listed(staffa, "--queue", "none") == []


def test_list_of_nothing_says_so(staffa: Run, ask: Ask) -> None:
    ask(lambda app: app.migrate())

    assert staffa("jobs", "list", "tasks:app").stdout == "no jobs\n"
    assert staffa("jobs", "list", "tasks:app", "--state", "completed").stdout == "no such jobs\n"


def test_show_tells_everything_with_tracebacks(staffa: Run, discarded: Job) -> None:
    result = staffa("jobs", "show", str(discarded.id), "tasks:app")

    assert result.exit_code == 0
    assert f"job {discarded.id}: discarded" in result.stdout
    assert "attempt       1 of 1" in result.stdout
    assert "tests.cli.fails" in result.stdout
    assert '"b": 1' in result.stdout
    assert "Traceback (most recent call last)" in result.stdout
    assert "ValueError: no" in result.stdout


def test_show_never_lets_a_job_speak_to_the_terminal(staffa: Run, discarded: Job) -> None:
    for arguments in (["show", str(discarded.id)], ["list"]):
        assert "\x1b" not in staffa("jobs", *arguments, "tasks:app").stdout


def test_show_as_json_has_stable_keys_and_iso_times(staffa: Run, discarded: Job) -> None:
    shown = json.loads(staffa("jobs", "show", str(discarded.id), "tasks:app", "--json").stdout)

    assert shown.keys() == KEYS
    assert shown["args"] == {"colour": "\x1b[31mred"}
    assert datetime.fromisoformat(shown["discarded_at"]) == discarded.discarded_at
    assert shown["completed_at"] is None
    (error,) = shown["errors"]
    assert error["attempt"] == 1
    assert datetime.fromisoformat(error["at"]).tzinfo is not None
    assert "ValueError" in error["error"]


@pytest.mark.usefixtures("waiting")
def test_show_of_a_job_that_is_not_there_exits_with_1(staffa: Run) -> None:
    result = staffa("jobs", "show", "99", "tasks:app")

    assert result.exit_code == 1
    assert "there is no job 99 in sqlite:///jobs.db" in result.stderr


@pytest.mark.usefixtures("waiting")
def test_cancel_tells_each_jobs_fate_and_exits_with_1_when_one_was_not_cancelled(
    staffa: Run, ask: Ask
) -> None:
    assert staffa("jobs", "cancel", "1", "3", "tasks:app").stdout == "job 1: cancelled\njob 3: cancelled\n"

    result = staffa("jobs", "cancel", "1", "2", "99", "tasks:app")

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "job 1: left as it is, for it is cancelled already",
        "job 2: cancelled",
        "job 99: there is no such job",
    ]
    assert {one.state for one in ask(lambda app: app.list_jobs())} == {"cancelled"}


def test_retry_makes_a_job_available_again(staffa: Run, discarded: Job) -> None:
    first = staffa("jobs", "retry", str(discarded.id), "tasks:app", "--json")
    second = staffa("jobs", "retry", str(discarded.id), "tasks:app", "--json")

    assert first.exit_code == 0
    assert json.loads(first.stdout) == [{"id": discarded.id, "changed": True, "state": "available"}]
    assert second.exit_code == 1
    assert json.loads(second.stdout) == [{"id": discarded.id, "changed": False, "state": "available"}]
