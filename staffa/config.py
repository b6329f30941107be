"""The configuration of an instance, from layers of which each holds only what was said there.

The order, the strongest first: flags of the command line, arguments of `Staffa(…)`, environment variables
(`STAFFA_…`), the project's file (`[tool.staffa]` in pyproject.toml, or staffa.toml), defaults. Flags come before
arguments, for an operator types them for one process, knowing the code; a flag without effect would be worse
than none.
"""

import os
import re
import socket
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from staffa.connections import URL, connections_for, parse_url
from staffa.engines import engine_for
from staffa.errors import InvalidOption
from staffa.options import build, check, did_you_mean, seconds, shown
from staffa.producer import Queue

__all__ = ["Config", "parse_queues"]

DEFAULT_URL = "sqlite:///staffa.db"

Layer = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be said about an instance, checked.

    Args:
        url: Where the jobs live.
        name: The instance's name; nodes of one instance share it.
        node: This process's name, without white space; by default `<host>.<pid>`.
        prefix: The schema that holds the tables, where the database has schemas.
        queues: Limits or options by name; none means that the instance only enqueues.
        stage_interval: Seconds between two looks for due jobs.
        grace_period: Seconds that running jobs get to finish when the instance stops.
        notify: Whether processes tell each other of new jobs, where the database can; else they look for them.
    """

    url: str = DEFAULT_URL
    name: str = "staffa"
    node: str = field(default_factory=lambda: f"{socket.gethostname()}.{os.getpid()}")
    prefix: str | None = None
    queues: Mapping[str, Queue] = field(default_factory=dict[str, Queue])
    stage_interval: float = 1.0
    grace_period: float = 15.0
    notify: bool = True
    sources: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    def __post_init__(self) -> None:
        wrong = _Wrong()
        # The database's own parts refuse at birth what they would refuse when they are first used.
        with wrong:
            check("url", self.url, ok=_is_text(self.url, 4096), want="a database URL")
            connections_for(self.database)
        sound_url = not wrong.problems
        with wrong:
            check("name", self.name, ok=_is_text(self.name), want="a name of 1 to 127 characters")
        with wrong:
            ok = _is_text(self.node) and re.fullmatch(r"[^\s\x00-\x1f]+", self.node) is not None
            check("node", self.node, ok=ok, want="a name of 1 to 127 characters without white space")
        with wrong:
            ok = self.prefix is None or _is_text(self.prefix)
            check("prefix", self.prefix, ok=ok, want="a schema's name")
            if sound_url:
                engine_for(self.database.kind, self.prefix)
        with wrong:
            object.__setattr__(self, "queues", parse_queues(self.queues))
        for option, least in (("stage_interval", 0.001), ("grace_period", 0.0)):
            with wrong:
                object.__setattr__(self, option, _seconds(option, getattr(self, option), least))
        with wrong:
            object.__setattr__(self, "notify", _truth("notify", self.notify))
        wrong.refuse()

    @property
    def database(self) -> URL:
        """The URL, taken apart."""
        return parse_url(self.url)

    @classmethod
    def load(cls, arguments: Mapping[str, Any], flags: Mapping[str, Any] | None = None) -> "Config":
        """Merge the layers: the strongest that says something about an option decides it.

        Raises:
            InvalidOption: Something in them is wrong; all of it is named, with where it was said.
        """
        wrong = _Wrong()
        layers: list[Layer] = [("flag", flags or {}), ("argument", arguments), *_environment()]
        with wrong:
            layers += _files(Path.cwd())
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, layer in layers:
            for option, value in layer.items():
                if option not in OPTIONS:
                    with wrong:
                        raise _unknown(source, option)
                elif value is not None and option not in values:
                    values[option], sources[option] = value, source
        config: Config | None = None
        with wrong.naming(sources):
            config = cls(**values, sources={option: sources.get(option, "default") for option in OPTIONS})
        wrong.refuse()
        assert config is not None
        return config


OPTIONS = tuple(one.name for one in fields(Config) if one.name != "sources")

ENVIRONMENT = {
    "STAFFA_DATABASE_URL": "url",
    "STAFFA_NAME": "name",
    "STAFFA_NODE": "node",
    "STAFFA_PREFIX": "prefix",
    "STAFFA_QUEUES": "queues",
    "STAFFA_STAGE_INTERVAL": "stage_interval",
    "STAFFA_GRACE_PERIOD": "grace_period",
    "STAFFA_NOTIFY": "notify",
}


class _Wrong:
    """Gathers what is wrong, block by block, so that all of it is said at once: `with wrong: check(…)`."""

    def __init__(self) -> None:
        self.problems: list[InvalidOption] = []

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, InvalidOption):
            return False
        self.problems += error.problems
        return True

    @contextmanager
    def naming(self, sources: Mapping[str, str]) -> Generator[None]:
        """The same, and say where each wrong option came from, unless that is the code before everybody's eyes."""
        before = len(self.problems)
        with self:
            yield
        self.problems[before:] = [_named(one, sources) for one in self.problems[before:]]

    def refuse(self) -> None:
        """Raise what has been gathered, if anything has."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            lines = "\n".join(f"  {problem}" for problem in self.problems)
            text = f"{len(self.problems)} options are wrong\n{lines}"
            raise InvalidOption(text, option=self.problems[0].option, problems=self.problems)


def _named(problem: InvalidOption, sources: Mapping[str, str]) -> InvalidOption:
    source = sources.get(problem.option, "argument")
    return (
        problem
        if source == "argument"
        else InvalidOption(f"{problem} (from {source})", option=problem.option)
    )


def _unknown(source: str, option: str) -> InvalidOption:
    known = (*OPTIONS, "plugins") if source == "argument" else OPTIONS
    return InvalidOption(f"{source}: unknown option {option!r}{did_you_mean(option, known)}", option=option)


def parse_queues(queues: object) -> dict[str, Queue]:
    """Queues from any of their forms: `{"default": 10, "mail": Queue(limit=5)}`, or `"default=10,mail=5"`.

    Raises:
        InvalidOption: It is none of these, or limits are not positive integers; all of them are named.
    """
    if isinstance(queues, str):
        queues = dict(_queue_of(part) for part in queues.split(",") if part.strip())
    if not isinstance(queues, Mapping):
        raise InvalidOption(
            f"expected queues to be a mapping of names to limits, or text like 'default=10,mail=5', got: {shown(queues)}",
            option="queues",
        )
    wrong, parsed = _Wrong(), dict[str, Queue]()
    for name, said in cast("Mapping[Any, object]", queues).items():
        with wrong:
            parsed[_queue_name(name)] = _queue(name, said)
    wrong.refuse()
    return parsed


def _queue_of(part: str) -> tuple[str, object]:
    name, _, limit = part.strip().partition("=")
    return name.strip(), int(limit) if limit.strip().isdecimal() else limit


def _queue_name(name: object) -> str:
    check("queues", name, ok=_is_text(name), want="a mapping whose keys are names of 1 to 127 characters")
    return cast("str", name)


def _queue(name: object, said: object) -> Queue:
    if isinstance(said, Queue):
        return said
    prefix = f"queue {name!r}"
    try:
        if isinstance(said, Mapping):
            return build(Queue, cast("Mapping[str, Any]", said), of=prefix)
        return Queue(limit=cast("int", said))
    except (InvalidOption, TypeError) as error:
        raise InvalidOption(f"{prefix}: {str(error).removeprefix(f'{prefix}: ')}", option="queues") from None


def _environment() -> list[Layer]:
    said = [
        (f"environment {name}", {option: os.environ[name]})
        for name, option in ENVIRONMENT.items()
        if os.environ.get(name)
    ]
    return [(source, dict(layer)) for source, layer in said]


def _files(folder: Path) -> list[Layer]:
    layers: list[Layer] = []
    for name in ("staffa.toml", "pyproject.toml"):
        path = folder / name
        if path.is_file():
            try:
                content = tomllib.loads(path.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                if name == "pyproject.toml":
                    continue  # another tool's file, and another tool's complaint
                raise InvalidOption(f"{name} cannot be read: {error}", option="file") from error
            table: object = content if name == "staffa.toml" else content.get("tool", {}).get("staffa", {})
            if not isinstance(table, dict):
                raise InvalidOption(
                    f"file {name}: expected tool.staffa to be a table, got: {shown(table)}", option="file"
                )
            layers.append((f"file {name}", cast("dict[str, Any]", table)))
    return layers


def _seconds(option: str, said: object, least: float) -> float:
    value = seconds(_number(said))
    want = "seconds or a timedelta, " + ("positive" if least else "zero or more")
    check(option, said, ok=value is not None and value >= least, want=want)
    return value or 0.0


def _truth(option: str, said: object) -> bool:
    words = {
        "true": True,
        "on": True,
        "yes": True,
        "1": True,
        "false": False,
        "off": False,
        "no": False,
        "0": False,
    }
    value = words.get(said.lower()) if isinstance(said, str) else said
    check(option, said, ok=isinstance(value, bool), want="True or False")
    return bool(value)


def _number(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _is_text(value: object, most: int = 127) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most
