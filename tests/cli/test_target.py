"""How `module:app` and `--database` become an instance, and what is said when they do not."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from staffa import Job
from staffa.cli.target import script, url_of_file
from staffa.config import Config

from .conftest import Ask, Run


def sentence(result: Result) -> str:
    """What a failed command said: one error, and no traceback."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *_, last = result.stderr.splitlines()
    assert last.startswith("Error: ")
    return last


def source(staffa: Run, *arguments: str) -> tuple[Any, str]:
    option = json.loads(staffa("config", *arguments, "--json").stdout)["options"]["url"]
    return option["value"], option["source"]


def test_a_module_is_found_from_the_current_folder(staffa: Run) -> None:
    assert source(staffa, "tasks:app") == ("sqlite:///jobs.db", "argument")


def test_an_instance_may_be_an_attribute_of_something_in_a_package(staffa: Run, project: Path) -> None:
    (project / "shop").mkdir()
    (project / "shop" / "background.py").write_text(
        "from staffa import Staffa\nclass Holder:\n    app = Staffa('sqlite:///shop.db')\n"
    )

    assert source(staffa, "shop.background:Holder.app") == ("sqlite:///shop.db", "argument")


def test_a_flag_is_stronger_than_the_code(staffa: Run) -> None:
    assert source(staffa, "tasks:app", "--database", "sqlite:///other.db") == ("sqlite:///other.db", "flag")


def test_database_url_is_read_by_the_command_line_alone(staffa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///from-env.db")

    assert Config.load({}).url == "sqlite:///staffa.db"
    assert source(staffa) == ("sqlite:///from-env.db", "environment DATABASE_URL")


def test_database_url_is_weaker_than_the_code_and_than_staffa_database_url(
    staffa: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///from-env.db")

    assert source(staffa, "tasks:app") == ("sqlite:///jobs.db", "argument")

    monkeypatch.setenv("STAFFA_DATABASE_URL", "sqlite:///ours.db")

    assert source(staffa) == ("sqlite:///ours.db", "environment STAFFA_DATABASE_URL")


def test_database_url_does_not_matter_beside_the_flag(staffa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mongodb://elsewhere")

    assert source(staffa, "--database", "sqlite:///other.db") == ("sqlite:///other.db", "flag")


@pytest.mark.parametrize("target", ["tasks", "tasks:", ":app", "tasks.py:app", "tasks:app:more"])
def test_a_target_of_another_form_is_shown_the_form(staffa: Run, target: str) -> None:
    said = sentence(staffa("start", target))

    assert "expected MODULE:APP" in said
    assert "tasks:app" in said
    assert repr(target) in said


def test_a_module_that_is_missing_is_named_with_the_folder_that_was_searched(
    staffa: Run, project: Path
) -> None:
    said = sentence(staffa("start", "taks:app"))

    assert "expected a module taks" in said
    assert str(project) in said


def test_a_module_that_does_not_import_is_named_with_its_error(staffa: Run, project: Path) -> None:
    (project / "broken.py").write_text("def boom():\n    return {}['key']\n\nboom()\n")

    said = sentence(staffa("start", "broken:app"))

    assert f"broken cannot be imported: {project}/broken.py:2: KeyError: 'key'" in said


def test_a_module_with_a_syntax_error_is_named_with_its_line(staffa: Run, project: Path) -> None:
    (project / "unfinished.py").write_text("x = 1\ndef f(:\n")

    said = sentence(staffa("start", "unfinished:app"))

    assert f"{project}/unfinished.py:2: SyntaxError" in said


def test_a_module_that_misses_another_one_is_not_called_missing_itself(staffa: Run, project: Path) -> None:
    (project / "needy.py").write_text("import no_such_package\n")

    said = sentence(staffa("start", "needy:app"))

    assert f"needy cannot be imported: {project}/needy.py:1: ModuleNotFoundError" in said
    assert "no_such_package" in said


def test_a_module_that_exits_is_named(staffa: Run, project: Path) -> None:
    (project / "leaver.py").write_text("import sys\nsys.exit('not configured')\n")

    assert f"{project}/leaver.py:2: SystemExit: not configured" in sentence(staffa("start", "leaver:app"))


def test_a_wrong_option_in_the_code_is_shown_at_the_users_line(staffa: Run, project: Path) -> None:
    (project / "zero.py").write_text("from staffa import Staffa\n\napp = Staffa(queues={'default': 0})\n")

    said = sentence(staffa("start", "zero:app"))

    assert (
        f"{project}/zero.py:3: InvalidOption: queue 'default': expected limit to be a positive integer"
        in said
    )


def test_a_missing_attribute_is_named_with_what_there_is(staffa: Run) -> None:
    said = sentence(staffa("start", "tasks:ap"))

    assert "to have 'ap'" in said
    assert "it has: tasks:app" in said


def test_something_that_is_not_an_instance_is_refused_with_what_it_is(staffa: Run) -> None:
    said = sentence(staffa("start", "tasks:greet"))

    assert "expected tasks:greet to be a Staffa instance, got: staffa.worker.FunctionJob" in said
    assert "it has: tasks:app" in said


def test_a_url_that_is_none_is_shown_the_forms(staffa: Run) -> None:
    said = sentence(staffa("jobs", "list", "--database", "jobs.db"))

    assert "expected url to be one like sqlite:///jobs.db" in said
    assert "'jobs.db'" in said


@pytest.mark.parametrize("url", ["mongodb://ada:secret@host/db", "postgresql://ada:secret@[host/db"])
def test_a_wrong_url_is_named_with_its_variable_and_without_its_password(
    staffa: Run, monkeypatch: pytest.MonkeyPatch, project: Path, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    (project / "bare.py").write_text("from staffa import Staffa\n\napp = Staffa()\n")

    for target in ([], ["bare:app"]):
        said = sentence(staffa("jobs", "list", *target))

        assert "expected url to be" in said
        assert "(from environment DATABASE_URL)" in said
        assert "secret" not in said


@pytest.mark.parametrize(
    "arguments", [["jobs", "list"], ["jobs", "show", "1"], ["jobs", "retry", "1"], ["queues", "list"]]
)
def test_looking_into_a_database_that_is_not_there_does_not_make_it(
    staffa: Run, project: Path, arguments: list[str]
) -> None:
    said = sentence(staffa(*arguments, "--database", "sqlite:///misspelt.db"))

    assert f"there is no file {project}/misspelt.db" in said
    assert not (project / "misspelt.db").exists()


@pytest.mark.parametrize(
    "arguments", [["jobs", "list"], ["queues", "list"], ["migrate", "up"], ["start", "--queues", "default=1"]]
)
def test_a_corrupt_file_is_named(staffa: Run, project: Path, arguments: list[str]) -> None:
    (project / "bad.db").write_bytes(b"this is not a database at all " * 200)

    said = sentence(staffa(*arguments, "--database", "sqlite:///bad.db"))

    assert f"{project}/bad.db is not a sound SQLite database" in said


@pytest.mark.parametrize("arguments", [["jobs", "list"], ["queues", "list"], ["migrate", "up"]])
def test_tables_newer_than_the_code_are_left_alone(
    staffa: Run, project: Path, ask: Ask, arguments: list[str]
) -> None:
    ask(lambda app: app.migrate())
    with sqlite3.connect(project / "jobs.db") as connection:
        connection.execute("INSERT INTO staffa_migrations (version, name) VALUES (99, 'from the future')")
    connection.close()

    said = sentence(staffa(*arguments, "--database", "sqlite:///jobs.db"))

    assert "the tables are newer than this code (version 99" in said
    assert "upgrade the package staffa" in said


def test_a_locked_file_is_named_with_what_to_do(staffa: Run, project: Path, ask: Ask) -> None:
    ask(lambda app: app.enqueue(Job(worker="somewhere.else")))
    other = sqlite3.connect(project / "jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    said = sentence(staffa("jobs", "cancel", "1", "--database", "sqlite:///jobs.db?busy_timeout=0.05"))

    other.close()
    assert f"{project}/jobs.db is locked" in said
    assert "busy_timeout" in said


def test_a_url_for_a_file_survives_odd_names() -> None:
    url = url_of_file(Path("/tmp/with space/50%/ä?#.db"), {"synchronous": "normal"})

    database = Config(url=url).database

    assert database.path == "/tmp/with space/50%/ä?#.db"
    assert database.options == {"synchronous": "normal"}


def test_commands_to_paste_name_a_way_that_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "bin" / "staffa"
    installed.parent.mkdir()
    installed.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(installed)])
    monkeypatch.setattr("sys.executable", "/usr/bin/python 3")

    assert script() == str(installed)

    monkeypatch.setenv("PATH", str(installed.parent))

    assert script() == "staffa"

    monkeypatch.setattr("sys.argv", ["/somewhere/staffa/__main__.py"])

    assert script() == "'/usr/bin/python 3' -m staffa"
