"""`staffa config`."""

import json
from pathlib import Path

import pytest

from staffa.config import OPTIONS

from .conftest import Run


def test_every_option_is_shown_with_its_source(
    staffa: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAFFA_NODE", "north")
    (project / "staffa.toml").write_text("grace_period = 30\n")

    result = staffa("config", "tasks:app")
    document = json.loads(staffa("config", "tasks:app", "--json").stdout)

    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["url", "sqlite:///jobs.db", "argument"] in rows
    assert ["queues", "default=2", "argument"] in rows
    assert ["node", "north", "environment", "STAFFA_NODE"] in rows
    assert ["grace_period", "30.0", "s", "file", "staffa.toml"] in rows
    assert list(document["options"]) == list(OPTIONS)
    assert document["options"]["grace_period"] == {"value": 30.0, "source": "file staffa.toml"}
    assert document["options"]["queues"]["value"] == {
        "default": {"limit": 2, "paused": False, "ack": "batch"}
    }
    assert document["options"]["name"] == {"value": "staffa", "source": "default"}


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("queues = {default = 0}", "queue 'default': expected limit to be a positive integer, got: 0"),
        ("quues = {default = 1}", "unknown option 'quues', did you mean 'queues'?"),
        ("grace_period = 'long'", "expected grace_period to be"),
        ("=", "staffa.toml cannot be read"),
    ],
)
def test_a_wrong_option_exits_with_1_and_names_its_place(
    staffa: Run, project: Path, toml: str, said: str
) -> None:
    (project / "staffa.toml").write_text(toml)

    result = staffa("config")
    document = json.loads(staffa("config", "--json").stdout)

    assert result.exit_code == 1
    assert said in result.stderr
    assert "staffa.toml" in result.stderr
    assert document["valid"] is False
    assert said in document["errors"][0]


def test_all_errors_are_listed(staffa: Run, project: Path) -> None:
    (project / "staffa.toml").write_text("node = 'two words'\ngrace_period = -1")

    document = json.loads(staffa("config", "--json").stdout)

    assert [error.partition(" to be")[0] for error in document["errors"]] == [
        "expected node",
        "expected grace_period",
    ]


def test_a_module_that_does_not_import_is_an_error_of_the_configuration(staffa: Run) -> None:
    result = staffa("config", "nowhere:app")

    assert result.exit_code == 1
    assert "expected a module nowhere" in result.stderr


def test_a_folder_that_is_missing_is_an_error(staffa: Run, project: Path) -> None:
    result = staffa("config", "--database", "sqlite:///no/where.db")

    assert result.exit_code == 1
    assert str(project / "no") in result.stderr


def test_what_means_nothing_is_warned_of(staffa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAFFA_QUEUE", "default=1")

    result = staffa("config")

    assert result.exit_code == 0
    assert "STAFFA_QUEUE means nothing; did you mean STAFFA_QUEUES?" in result.stderr
    assert "there are no queues" in result.stderr
