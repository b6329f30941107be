"""Configuration: layers of which each holds only what was said there."""

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from staffa import Queue
from staffa.config import DEFAULT_URL, ENVIRONMENT, OPTIONS, Config, parse_queues
from staffa.errors import InvalidOption


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, and no STAFFA_… variables."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("STAFFA_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    return tmp_path


def load(**arguments: Any) -> Config:
    return Config.load(arguments)


# Layers.


def test_without_a_word_everything_has_its_default() -> None:
    config = load()

    assert (config.url, config.name, config.prefix, config.queues) == (DEFAULT_URL, "staffa", None, {})
    assert (config.stage_interval, config.grace_period) == (1.0, 15.0)
    assert config.node == f"{socket.gethostname()}.{os.getpid()}"
    assert set(config.sources.values()) == {"default"}


def test_the_strongest_layer_that_says_something_decides(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pyproject.toml").write_text(
        "[tool.staffa]\n" + "\n".join(f'{one} = "pyproject"' for one in ("name", "node"))
    )
    assert (load().name, load().sources["name"]) == ("pyproject", "file pyproject.toml")

    (project / "staffa.toml").write_text('name = "file"')
    assert (load().name, load().sources["name"]) == ("file", "file staffa.toml")

    monkeypatch.setenv("STAFFA_NAME", "environment")
    assert (load().name, load().sources["name"]) == ("environment", "environment STAFFA_NAME")

    assert (load(name="argument").name, load(name="argument").sources["name"]) == ("argument", "argument")

    config = Config.load({"name": "argument"}, {"name": "flag"})
    assert (config.name, config.sources["name"]) == ("flag", "flag")
    assert (config.node, config.sources["node"]) == ("pyproject", "file pyproject.toml")
    assert (config.prefix, config.sources["prefix"]) == (None, "default")


def test_a_layer_that_says_nothing_about_an_option_does_not_hide_a_weaker_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "staffa.toml").write_text("grace_period = 60\n[queues]\nmail = 5")
    monkeypatch.setenv("STAFFA_STAGE_INTERVAL", "0.5")

    config = Config.load({"grace_period": None, "name": "shop"}, {"queues": None})

    assert (config.grace_period, config.stage_interval, config.name) == (60.0, 0.5, "shop")
    assert config.queues == {"mail": Queue(limit=5)}


def test_every_option_has_a_variable_and_a_source() -> None:
    variables = set(ENVIRONMENT.values())

    assert variables == set(OPTIONS)
    assert set(load().sources) == set(OPTIONS)


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "STAFFA_DATABASE_URL": "sqlite:///other.db", "STAFFA_NAME": "shop", "STAFFA_NODE": "web-1",
        "STAFFA_QUEUES": "default=10, mail=5", "STAFFA_STAGE_INTERVAL": "0.25",
        "STAFFA_GRACE_PERIOD": "30",
    }  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)

    config = load()

    assert (config.url, config.name, config.node) == ("sqlite:///other.db", "shop", "web-1")
    assert (config.stage_interval, config.grace_period) == (0.25, 30.0)
    assert config.queues == {"default": Queue(limit=10), "mail": Queue(limit=5)}
    assert set(config.sources.values()) - {"default"} == {f"environment {name}" for name in said}
    assert config.sources["prefix"] == "default"


def test_a_prefix_that_the_database_cannot_have_is_refused_with_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAFFA_PREFIX", "private")

    with pytest.raises(
        InvalidOption, match=r"expected prefix to be None .* \(from environment STAFFA_PREFIX\)"
    ):
        load()


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAFFA_NAME", "")

    assert load().name == "staffa"


def test_the_library_never_reads_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///other.db")

    assert load().url == DEFAULT_URL


def test_queues_may_stand_in_a_file_as_limits_or_as_tables(project: Path) -> None:
    (project / "pyproject.toml").write_text(
        '[tool.staffa.queues]\ndefault = 10\nreports = { limit = 2, paused = true, ack = "immediate" }\n'
    )

    assert load().queues == {
        "default": Queue(limit=10),
        "reports": Queue(limit=2, paused=True, ack="immediate"),
    }


def test_a_project_file_of_others_is_left_alone(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool.other]\nname = "x"\n')
    assert load().name == "staffa"

    (project / "pyproject.toml").write_text("this is no TOML [")
    assert load().name == "staffa"


# Bad values.


@pytest.mark.parametrize(
    ("option", "value", "want"),
    [
        ("url", "jobs.db", "url to be one like sqlite:///jobs.db"),
        ("url", "oracle://localhost/jobs", "url to be one like sqlite:///jobs.db"),
        ("url", 5, "url to be a database URL"),
        ("name", "", "name to be a name of 1 to 127 characters"),
        ("name", "x" * 128, "name to be a name of 1 to 127 characters"),
        ("name", 5, "name to be a name of 1 to 127 characters"),
        ("node", "two words", "node to be a name of 1 to 127 characters without white space"),
        ("node", "", "node to be a name of 1 to 127 characters without white space"),
        ("prefix", "", "prefix to be a schema's name"),
        ("stage_interval", 0, "stage_interval to be seconds or a timedelta, positive"),
        ("stage_interval", "soon", "stage_interval to be seconds or a timedelta, positive"),
        ("stage_interval", float("nan"), "stage_interval to be seconds or a timedelta, positive"),
        ("grace_period", -1, "grace_period to be seconds or a timedelta, zero or more"),
        ("grace_period", timedelta(seconds=-1), "grace_period to be seconds or a timedelta, zero or more"),
        ("grace_period", True, "grace_period to be seconds or a timedelta, zero or more"),
        ("queues", 5, "queues to be a mapping of names to limits, or text like 'default=10,mail=5'"),
        ("queues", ["default"], "queues to be a mapping of names to limits, or text like 'default=10,mail=5'"),
        ("queues", {"": 1}, "queues to be a mapping whose keys are names of 1 to 127 characters"),
        ("queues", {5: 1}, "queues to be a mapping whose keys are names of 1 to 127 characters"),
        ("queues", {"default": 0}, "limit to be a positive integer, got: 0"),
        ("queues", {"default": 1.5}, "limit to be a positive integer, got: 1.5"),
        ("queues", {"default": True}, "limit to be a positive integer, got: True"),
        ("queues", {"default": None}, "limit to be a positive integer, got: None"),
        ("queues", "default=many", "limit to be a positive integer, got: 'many'"),
        ("queues", "default", "limit to be a positive integer, got: ''"),
        ("queues", {"default": {"limit": 1, "paused": "yes"}}, "paused to be True or False"),
        ("queues", {"default": {"limit": 1, "ack": "later"}}, "ack to be 'batch' or 'immediate'"),
        ("queues", {"default": {"limt": 1}}, "queue 'default': unknown option 'limt', did you mean 'limit'?"),
        ("queues", {"default": {}}, "queue 'default': "),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_its_name(option: str, value: object, want: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        load(**{option: value})

    assert want in str(caught.value)
    assert caught.value.option == option


def test_all_that_is_wrong_is_said_at_once_with_where_it_was_said(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "staffa.toml").write_text("grace_period = -1\nquues = 5")
    monkeypatch.setenv("STAFFA_NODE", "two words")

    with pytest.raises(InvalidOption) as caught:
        load(url="nowhere", queues={"mail": 0, "": 1, "default": 5})

    first, *lines = str(caught.value).splitlines()
    assert first == "6 options are wrong"
    assert [problem.option for problem in caught.value.problems] == [
        "quues", "url", "node", "queues", "queues", "grace_period",
    ]  # fmt: skip
    for line, said in zip(
        lines,
        [
            "file staffa.toml: unknown option 'quues', did you mean 'queues'?",
            "expected url to be one like",
            "without white space, got: 'two words' (from environment STAFFA_NODE)",
            "queue 'mail': expected limit",
            "whose keys are names",
            "got: -1 (from file staffa.toml)",
        ],
        strict=True,
    ):
        assert line.startswith("  ")
        assert said in line


def test_one_problem_is_said_in_its_own_sentence() -> None:
    with pytest.raises(InvalidOption) as caught:
        load(name="")

    assert str(caught.value) == "expected name to be a name of 1 to 127 characters, got: ''"
    assert caught.value.problems == (caught.value,)


def test_a_file_that_cannot_be_read_hides_no_other_problem(project: Path) -> None:
    (project / "staffa.toml").write_text("queues = [")

    with pytest.raises(
        InvalidOption, match=r"2 options are wrong(.|\n)*cannot be read(.|\n)*expected name to be"
    ):
        load(name="")


def test_a_bad_limit_names_its_queue() -> None:
    with pytest.raises(InvalidOption, match="queue 'mail': expected limit to be a positive integer, got: 0"):
        load(queues={"default": 10, "mail": 0})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("STAFFA_DATABASE_URL", "nowhere"),
        ("STAFFA_NODE", "a b"),
        ("STAFFA_QUEUES", "default=0"),
        ("STAFFA_GRACE_PERIOD", "soon"),
    ],
)
def test_a_bad_value_says_which_variable_it_came_from(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidOption) as caught:
        load()

    assert str(caught.value).endswith(f"(from environment {variable})")
    assert caught.value.option == ENVIRONMENT[variable]


@pytest.mark.parametrize(
    ("file", "text"),
    [("staffa.toml", "grace_period = -1"), ("pyproject.toml", "[tool.staffa]\ngrace_period = -1")],
)
def test_a_bad_value_says_which_file_it_came_from(project: Path, file: str, text: str) -> None:
    (project / file).write_text(text)

    with pytest.raises(InvalidOption, match=rf"got: -1 \(from file {file}\)"):
        load()


def test_a_bad_flag_says_so() -> None:
    with pytest.raises(InvalidOption, match=r"\(from flag\)"):
        Config.load({}, {"grace_period": -1})


def test_an_unknown_option_is_refused_with_its_source_and_a_suggestion(project: Path) -> None:
    (project / "staffa.toml").write_text("grace_perod = 5")

    with pytest.raises(
        InvalidOption, match=r"file staffa\.toml: unknown option 'grace_perod', did you mean 'grace_period'"
    ):
        load()


def test_a_file_that_is_no_toml_is_named(project: Path) -> None:
    (project / "staffa.toml").write_text("queues = [")

    with pytest.raises(InvalidOption, match=r"staffa\.toml cannot be read: "):
        load()


def test_a_section_that_is_no_table_is_refused(project: Path) -> None:
    (project / "pyproject.toml").write_text('[tool]\nstaffa = "yes"')

    with pytest.raises(
        InvalidOption, match=r"file pyproject\.toml: expected tool\.staffa to be a table, got: 'yes'"
    ):
        load()


def test_only_a_database_url_may_be_long() -> None:
    with pytest.raises(InvalidOption, match="expected name"):
        load(name="a://" + "x" * 1_000)

    assert load(url="sqlite:///" + "x" * 1_000).database.path == "x" * 1_000


def test_a_bad_url_does_not_show_its_password() -> None:
    with pytest.raises(InvalidOption) as caught:
        load(url="oracle://scott:tiger@localhost/jobs")

    assert "tiger" not in str(caught.value)


# Forms.


@pytest.mark.parametrize(
    ("queues", "limits"),
    [
        ({}, {}),
        ("", {}),
        ({"default": 10}, {"default": 10}),
        ({"default": Queue(limit=10)}, {"default": 10}),
        ({"default": {"limit": 10}}, {"default": 10}),
        ("default=10", {"default": 10}),
        (" default = 10 , mail=5, ", {"default": 10, "mail": 5}),
        ("mail.eu-1=5", {"mail.eu-1": 5}),
    ],
)
def test_queues_have_several_forms(queues: object, limits: dict[str, int]) -> None:
    parsed = parse_queues(queues)

    assert {name: queue.limit for name, queue in parsed.items()} == limits


@pytest.mark.parametrize(
    ("value", "seconds"), [(5, 5.0), (0.5, 0.5), (timedelta(minutes=1), 60.0), ("2.5", 2.5)]
)
def test_durations_are_seconds_or_a_timedelta(value: object, seconds: float) -> None:
    config = load(grace_period=value, stage_interval=value)

    assert config.grace_period == config.stage_interval == seconds


def test_no_grace_at_all_is_fine() -> None:
    assert load(grace_period=0).grace_period == 0.0
