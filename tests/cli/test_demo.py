"""`staffa demo`, small, with its real worker processes."""

import ast
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from staffa import QueueInfo, Staffa
from staffa.cli.demo_jobs import Totals, parse_file, prepare_figures, source_files, totals

from .conftest import Ask, Eventually, Spawn


def finished(process: "subprocess.Popen[str]", within: float = 300) -> tuple[str, str]:
    output, errors = process.communicate(timeout=within)
    assert process.returncode == 0, output + errors
    return output, errors


def pids(ask: Ask) -> list[int]:
    """The worker processes, by the names of the nodes that live."""
    queues: list[QueueInfo] = ask(Staffa.list_queues)
    return [int(queue.node.rpartition(".")[2]) for queue in queues if queue.alive]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_small_demo_proves_its_sum(spawn: Spawn) -> None:
    output, errors = finished(spawn("demo", "--limit", "40", "--processes", "1", "--json"))

    summary: dict[str, Any] = json.loads(output)
    folder = Path(summary["database"].removeprefix("sqlite:///")).parent
    with sqlite3.connect(summary["figures"]) as connection:
        rows = connection.execute("SELECT path, lines, functions FROM staffa_demo").fetchall()
    connection.close()
    shutil.rmtree(folder)
    assert summary["enqueued"] == 40
    assert summary["sum_holds"] is True
    assert sum(summary["states"].values()) == 40
    assert summary["totals"]["files"] == len(rows) == summary["states"]["completed"]
    assert len(summary["slowest"]) == 5
    assert summary["workers_lost"] == 0
    path, lines, functions = rows[0]
    source = Path(path).read_text(encoding="utf-8")
    assert lines == len(source.splitlines())
    nodes = list(ast.walk(ast.parse(source)))
    assert functions == sum(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in nodes)
    assert "enqueued 40 jobs" in errors


def test_a_demo_on_a_given_database_keeps_it_and_names_a_job_to_look_at(spawn: Spawn, project: Path) -> None:
    output, _ = finished(spawn("demo", "--limit", "25", "--database", "sqlite:///mine.db"))

    assert (project / "mine.db").exists()
    assert (project / "figures.db").exists()
    assert "enqueued 25 = completed " in output
    assert "2 workers of 8 jobs at once" in output


def test_without_keep_nothing_is_left(spawn: Spawn, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(project))

    output, _ = finished(spawn("demo", "--limit", "5", "--processes", "1", "--no-keep"))

    assert "enqueued 5 = completed 5 + discarded 0" in output
    assert list(project.glob("staffa-demo-*")) == []


def test_an_interrupted_demo_stops_its_workers_and_says_how_to_go_on(
    spawn: Spawn, ask: Ask, eventually: Eventually
) -> None:
    process = spawn("demo", "--limit", "2000", "--database", "sqlite:///jobs.db")
    workers = eventually(lambda: len(found := pids(ask)) == 2 and found)

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 130
    assert not any(is_running(worker) for worker in workers)
    assert "interrupted, the workers have stopped" in output
    assert "start --database sqlite:///jobs.db --queues demo-" in output


def test_the_files_are_python_and_a_limit_spreads_over_them() -> None:
    everything = source_files()

    some = source_files(10)

    assert len(some) == len(set(some)) == 10
    assert set(some) <= set(everything)
    assert os.__file__ in everything
    assert pytest.__file__ in everything
    assert all(path.endswith(".py") for path in everything)


def test_a_file_that_does_not_parse_is_tried_three_times_and_discarded(
    spawn: Spawn, ask: Ask, eventually: Eventually, project: Path
) -> None:
    (project / "bad.py").write_text("print 'hello'\n")
    (project / "odd.py").write_text("pattern = '\\d'\n")  # a warning, and no error
    figures = project / "figures.db"
    prepare_figures(figures)
    made = [parse_file.new(str(project / name), str(figures)) for name in ("bad.py", "odd.py")]
    ask(lambda app: app.enqueue_all(made))

    spawn("start", "tasks:app")
    states = {"discarded": 1, "completed": 1}
    eventually(lambda: ask(Staffa.count_jobs) == {"default": states})

    bad, odd = sorted(ask(Staffa.list_jobs), key=lambda job: job.args["path"])
    assert [error.attempt for error in bad.errors] == [1, 2, 3]
    assert bad.errors[0].summary.startswith("SyntaxError: Missing parentheses in call to 'print'")
    assert odd.errors == []
    assert totals(figures, "default") == Totals(files=1, lines=1, functions=0, classes=0, bytes=15)


@pytest.mark.long
def test_kill_9_of_workers_in_the_middle_loses_no_job(
    spawn: Spawn, ask: Ask, eventually: Eventually, project: Path
) -> None:
    process = spawn("demo", "--limit", "1500", "--database", "sqlite:///jobs.db")
    victims: list[int] = []
    for _ in range(2):
        victims.append(eventually(lambda: next((pid for pid in pids(ask) if pid not in victims), None)))
        eventually(lambda: sum(counts.get("executing", 0) for counts in ask(Staffa.count_jobs).values()) >= 8)
        os.kill(victims[-1], signal.SIGKILL)
        eventually(lambda: not is_running(victims[-1]))

    output, _ = finished(process, within=180)

    assert output.count("was killed by signal 9 (SIGKILL); process ") == 2
    assert "2 workers died" in output
    assert "enqueued 1,500 = completed" in output
    pasted = next(line for line in output.splitlines() if " jobs show " in line)
    shown = subprocess.run(shlex.split(pasted), cwd=project, capture_output=True, text=True, check=True)
    assert ": discarded" in shown.stdout
