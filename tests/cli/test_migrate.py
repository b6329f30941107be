"""`staffa migrate`."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from staffa import Job

from .conftest import Ask, Run


def status(staffa: Run, code: int) -> Any:
    result = staffa("migrate", "status", "tasks:app", "--json")
    assert result.exit_code == code
    return json.loads(result.stdout)


def test_status_exits_with_1_until_the_tables_are_current(staffa: Run, project: Path) -> None:
    missing = status(staffa, 1)

    assert missing["version"] == 0
    assert missing["current"] is False
    assert not (project / "jobs.db").exists()

    assert staffa("migrate", "up", "tasks:app").exit_code == 0
    current = status(staffa, 0)

    assert current["version"] == current["latest"]
    assert current["current"] is True


def test_up_tells_the_steps_and_takes_none_twice(staffa: Run) -> None:
    first = json.loads(staffa("migrate", "up", "tasks:app", "--json").stdout)
    second = json.loads(staffa("migrate", "up", "tasks:app", "--json").stdout)

    assert [step["version"] for step in first["steps"]] == list(range(1, first["latest"] + 1))
    assert second["steps"] == []


def test_up_refuses_a_version_that_does_not_exist(staffa: Run) -> None:
    result = staffa("migrate", "up", "tasks:app", "--to", "999")

    assert result.exit_code == 1
    assert "expected version to be" in result.stderr


def test_up_does_not_go_down(staffa: Run, ask: Ask) -> None:
    ask(lambda app: app.enqueue(Job(worker="a.b")))

    result = staffa("migrate", "up", "tasks:app", "--to", "0")

    assert result.exit_code == 2
    assert "staffa migrate down --to 0" in result.stderr
    assert ask(lambda app: app.count_jobs()) == {"default": {"available": 1}}


def test_down_says_how_many_jobs_would_be_lost_and_asks(staffa: Run, ask: Ask) -> None:
    ask(lambda app: app.enqueue_all([Job(worker="a.b"), Job(worker="a.b", schedule_in=60)]))

    result = staffa("migrate", "down", "tasks:app", input="n\n")

    assert result.exit_code == 1
    assert "2 jobs (1 available, 1 scheduled) would be lost. Go on? [y/N]" in result.stderr
    assert ask(lambda app: app.count_jobs()) == {"default": {"available": 1, "scheduled": 1}}


def test_down_removes_the_tables_when_told_yes(staffa: Run, ask: Ask, project: Path) -> None:
    ask(lambda app: app.enqueue(Job(worker="a.b")))

    result = staffa("migrate", "down", "tasks:app", "--yes", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["version"] == 0
    with sqlite3.connect(project / "jobs.db") as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'oban%'").fetchall()
    connection.close()
    assert tables == []


def test_down_has_nothing_to_do_where_there_is_nothing(staffa: Run, project: Path) -> None:
    result = staffa("migrate", "down", "tasks:app")

    assert result.exit_code == 0
    assert "there are no tables of Staffa" in result.stdout
    assert not (project / "jobs.db").exists()


def test_a_table_of_somebody_else_is_left_alone(staffa: Run, project: Path) -> None:
    with sqlite3.connect(project / "jobs.db") as connection:
        connection.execute("CREATE TABLE oban_jobs (id INTEGER)")
    connection.close()

    assert status(staffa, 1)["foreign"] is True
    for command in ("up", "down"):
        result = staffa("migrate", command, "tasks:app", "--to", "1")
        if command == "up":
            assert result.exit_code == 1
            assert "that Staffa did not make" in result.stderr


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mysql"])
def test_sql_prints_every_step_for_a_tool_of_your_own(staffa: Run, kind: str) -> None:
    result = staffa("migrate", "sql", "--for", kind)

    assert result.exit_code == 0
    assert "CREATE TABLE" in result.stdout
    assert "staffa_migrations" in result.stdout


def test_sql_puts_the_tables_under_a_prefix_where_there_are_schemas(staffa: Run) -> None:
    assert '"jobs"."oban_jobs"' in staffa("migrate", "sql", "--for", "postgres", "--prefix", "jobs").stdout

    result = staffa("migrate", "sql", "--for", "sqlite", "--prefix", "jobs")

    assert result.exit_code == 2
    assert "SQLite has no schemas" in result.stderr
