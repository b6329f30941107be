"""The group itself: help, version, and how mistakes are answered."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from staffa import Staffa, __version__
from staffa.cli import main

from .conftest import Ask, Run

COMMANDS = {"start", "migrate", "jobs", "queues", "config", "bench", "demo"}

STAFFA = [sys.executable, "-m", "staffa"]
LIST_JOBS = [*STAFFA, "jobs", "list", "--database", "sqlite:///jobs.db"]


async def migrated(app: Staffa) -> None:
    await app.migrate()


def test_the_commands_are_those_of_the_reference() -> None:
    assert set(main.commands) == COMMANDS


def test_every_command_explains_itself(staffa: Run) -> None:
    for command in COMMANDS:
        result = staffa(command, "--help")

        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: staffa {command}")


def test_python_m_staffa_is_the_same_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "staffa", "--version"], capture_output=True, text=True, check=True
    )

    assert result.stdout == f"staffa {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["start", "--queue", "default=1"], "--queues"),
        (["jobs", "list", "--stat", "completed"], "--state"),
        (["jobs", "list", "--state", "complete"], "'completed'"),
        (["jobs", "list", "--limit", "0"], "--limit"),
        (["jobs", "show"], "ID"),
        (["jobs", "show", "seven"], "expected a job's id, a positive integer, got: 'seven'"),
        (["jobs", "show", "a:b", "c:d", "1"], "expected one MODULE:APP at most"),
        (["jobs", "cancel", "tasks:app"], "expected at least one job's id"),
        (["migrate", "sql", "--for", "oracle"], "'postgres'"),
        (["demo", "--processes", "0"], "--processes"),
        (["demo", "--database", "sqlite:///x.db", "--no-keep"], "--no-keep"),
        (["bench", "--jobs", "x"], "--jobs"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(staffa: Run, arguments: list[str], said: str) -> None:
    result = staffa(*arguments)

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_an_output_that_is_full_is_told_in_one_sentence(ask: Ask, options: list[str]) -> None:
    ask(migrated)

    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*LIST_JOBS, *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert result.returncode == 1
    assert result.stderr == "Error: stdout cannot be written to: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["jobs", "--help"]], ids=" ".join)
def test_a_help_text_that_cannot_be_written_is_told_in_one_sentence(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*STAFFA, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert result.returncode == 1
    assert result.stderr == "Error: stdout cannot be written to: No space left on device\n"


def test_a_reader_of_the_help_text_who_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [*STAFFA, "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)

    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="a shell's way to close a stream")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_an_output_that_is_closed_is_told_in_one_sentence(ask: Ask, options: list[str]) -> None:
    ask(migrated)
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *LIST_JOBS, *options]

    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)

    assert result.returncode == 1
    assert result.stderr == "Error: expected an output to write to, but stdout is closed\n"


def test_an_interrupt_while_modules_are_imported_ends_with_130_and_without_a_traceback(project: Path) -> None:
    # A process that was started in the background ignores SIGINT, and so do its children.
    (project / "tasks.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )

    result = subprocess.run(
        [*STAFFA, "start", "tasks:app"], capture_output=True, text=True, check=False, cwd=project
    )

    assert (result.returncode, result.stdout, result.stderr.strip()) == (130, "", "interrupted")
