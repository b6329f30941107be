"""`staffa start`, as a real process."""

import signal
import sqlite3
from pathlib import Path

import pytest

from staffa import Job, __version__

from .conftest import Ask, Eventually, Run, Spawn


def test_a_job_is_performed_and_sigterm_stops_gracefully(
    spawn: Spawn, ask: Ask, eventually: Eventually, project: Path
) -> None:
    ask(lambda app: app.enqueue(Job(worker="tasks.greet", args={"name": "Ada"})))
    process = spawn("start", "tasks:app", "--node", "north")

    eventually(lambda: "completed" in ask(lambda app: app.count_jobs())["default"])
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0
    assert (project / "greetings.txt").read_text() == "hello Ada\n"
    assert ask(lambda app: app.list_queues()) == []
    first = errors.splitlines()[0]
    assert (
        first
        == f"staffa {__version__}: node north, database sqlite:///jobs.db, queues default=2; Ctrl-C stops"
    )
    assert "job.stop tasks.greet id=1" in errors
    assert "SIGTERM: stopping" in errors
    assert "Traceback" not in errors


def test_without_a_module_workers_are_imported_by_name(
    spawn: Spawn, ask: Ask, eventually: Eventually, project: Path
) -> None:
    process = spawn("start", "--database", "sqlite:///jobs.db", "--queues", "mail=1", "--log-level", "error")
    ask(lambda app: app.enqueue(Job(worker="tasks.greet", args={"name": "Alan"}, queue="mail")))

    eventually((project / "greetings.txt").exists)
    eventually(lambda: "completed" in ask(lambda app: app.count_jobs())["mail"])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0
    assert len(errors.splitlines()) == 1


def test_the_users_own_logging_is_left_alone(
    spawn: Spawn, eventually: Eventually, ask: Ask, project: Path
) -> None:
    ask(lambda app: app.enqueue(Job(worker="tasks.greet", args={"name": "Grace"})))
    with (project / "tasks.py").open("a") as file:
        file.write("import logging\nlogging.basicConfig(format='mine %(message)s', level=logging.INFO)\n")
    process = spawn("start", "tasks:app")

    eventually(lambda: "completed" in ask(lambda app: app.count_jobs())["default"])
    process.terminate()
    _, errors = process.communicate(timeout=120)

    assert "mine job.stop tasks.greet" in errors
    assert errors.count("job.stop tasks.greet") == 1


def test_a_logger_that_the_module_attached_is_not_doubled(
    spawn: Spawn, eventually: Eventually, ask: Ask, project: Path
) -> None:
    ask(lambda app: app.enqueue(Job(worker="tasks.greet", args={"name": "Edsger"})))
    with (project / "tasks.py").open("a") as file:
        file.write("from staffa import telemetry\ntelemetry.attach_default_logger()\n")
    process = spawn("start", "tasks:app")

    eventually(lambda: "completed" in ask(lambda app: app.count_jobs())["default"])
    process.terminate()
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0
    assert errors.count("job.stop tasks.greet") == 1


def test_an_instance_without_queues_is_refused_with_how_to_give_them(staffa: Run) -> None:
    result = staffa("start", "--database", "sqlite:///jobs.db")

    assert result.exit_code == 1
    assert "staffa start --queues default=10" in result.stderr
    assert 'queues={"default": 10}' in result.stderr


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        ("default=0", "queue 'default': expected limit to be a positive integer, got: 0"),
        ("default=many", "queue 'default': expected limit to be a positive integer, got: 'many'"),
        ("default", "queue 'default': expected limit to be a positive integer, got: ''"),
        ("=3", "names of 1 to 127 characters"),
    ],
)
def test_wrong_queues_are_wrong_usage(staffa: Run, queues: str, said: str) -> None:
    result = staffa("start", "tasks:app", "--queues", queues)

    assert result.exit_code == 2
    assert "Invalid value for '--queues'" in result.stderr
    assert said in result.stderr


def test_a_wrong_node_is_named_with_where_it_came_from(staffa: Run) -> None:
    result = staffa("start", "tasks:app", "--node", "two words")

    assert result.exit_code == 1
    assert "expected node to be" in result.stderr
    assert "(from flag)" in result.stderr


def test_a_dry_run_checks_everything_and_starts_nothing(staffa: Run, project: Path) -> None:
    result = staffa("start", "tasks:app", "--queues", "mail=5", "--dry-run")

    assert result.exit_code == 0
    assert "queues mail=5" in result.stdout
    assert "tables will be made" in result.stdout
    assert not (project / "jobs.db").exists()


def test_a_dry_run_looks_at_the_tables_when_there_are_some(staffa: Run, ask: Ask, project: Path) -> None:
    ask(lambda app: app.migrate())

    assert "tables at version" in staffa("start", "tasks:app", "--dry-run").stdout

    with sqlite3.connect(project / "jobs.db") as connection:
        connection.execute("INSERT INTO staffa_migrations (version, name) VALUES (99, 'from the future')")
    connection.close()
    result = staffa("start", "tasks:app", "--dry-run")

    assert result.exit_code == 1
    assert "newer than this code" in result.stderr


def test_a_dry_run_tells_of_tables_that_will_be_brought_up_to_date(staffa: Run, project: Path) -> None:
    sqlite3.connect(project / "jobs.db").close()
    (project / "jobs.db").touch()

    assert "from version 0 to" in staffa("start", "tasks:app", "--dry-run").stdout


def test_a_folder_that_is_missing_is_named(staffa: Run, project: Path) -> None:
    for dry in ([], ["--dry-run"]):
        result = staffa("start", "--database", "sqlite:///no/where.db", "--queues", "default=1", *dry)

        assert result.exit_code == 1
        assert str(project / "no") in result.stderr
