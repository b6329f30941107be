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
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
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
    """

    url: str = DEFAULT_URL
    name: str = "staffa"
    node: str = field(default_factory=lambda: f"{socket.gethostname()}.{os.getpid()}")
    prefix: str | None = None
    queues: Mapping[str, Queue] = field(default_factory=dict[str, Queue])
    stage_interval: float = 1.0
    grace_period: float = 15.0
    sources: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    def __post_init__(self) -> None:
        check("url", self.url, ok=_is_text(self.url, 4096), want="a database URL")
        check("name", self.name, ok=_is_text(self.name), want="a name of 1 to 127 characters")
        ok = _is_text(self.node) and re.fullmatch(r"[^\s\x00-\x1f]+", self.node) is not None
        check("node", self.node, ok=ok, want="a name of 1 to 127 characters without white space")
        check("prefix", self.prefix, ok=self.prefix is None or _is_text(self.prefix), want="a schema's name")
        # The database's own parts refuse at birth what they would refuse when they are first used.
        engine_for(self.database.kind, self.prefix)
        connections_for(self.database)
        object.__setattr__(self, "queues", parse_queues(self.queues))
        for option, least in (("stage_interval", 0.001), ("grace_period", 0.0)):
            value = seconds(_number(getattr(self, option)))
            ok = value is not None and value >= least
            check(
                option,
                getattr(self, option),
                ok=ok,
                want="seconds or a timedelta, " + ("positive" if least else "zero or more"),
            )
            object.__setattr__(self, option, value)

    @property
    def database(self) -> URL:
        """The URL, taken apart."""
        return parse_url(self.url)

    @classmethod
    def load(cls, arguments: Mapping[str, Any], flags: Mapping[str, Any] | None = None) -> "Config":
        """Merge the layers: the strongest that says something about an option decides it."""
        layers: list[Layer] = [
            ("flag", flags or {}),
            ("argument", arguments),
            *_environment(),
            *_files(Path.cwd()),
        ]
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, layer in layers:
            for option, value in layer.items():
                if option not in OPTIONS:
                    raise InvalidOption(
                        f"{source}: unknown option {option!r}{did_you_mean(option, OPTIONS)}", option=option
                    )
                if value is not None and option not in values:
                    values[option], sources[option] = value, source
        try:
            return cls(**values, sources={option: sources.get(option, "default") for option in OPTIONS})
        except InvalidOption as error:
            source = sources.get(error.option, "argument")
            if source == "argument":
                raise
            raise InvalidOption(f"{error} (from {source})", option=error.option) from None


OPTIONS = tuple(one.name for one in fields(Config) if one.name != "sources")

ENVIRONMENT = {
    "STAFFA_DATABASE_URL": "url",
    "STAFFA_NAME": "name",
    "STAFFA_NODE": "node",
    "STAFFA_PREFIX": "prefix",
    "STAFFA_QUEUES": "queues",
    "STAFFA_STAGE_INTERVAL": "stage_interval",
    "STAFFA_GRACE_PERIOD": "grace_period",
}


def parse_queues(queues: object) -> dict[str, Queue]:
    """Queues from any of their forms: `{"default": 10, "mail": Queue(limit=5)}`, or `"default=10,mail=5"`.

    Raises:
        InvalidOption: It is none of these, or a limit is not a positive integer.
    """
    if isinstance(queues, str):
        queues = dict(_queue_of(part) for part in queues.split(",") if part.strip())
    if not isinstance(queues, Mapping):
        raise InvalidOption(
            f"expected queues to be a mapping of names to limits, or text like 'default=10,mail=5', got: {shown(queues)}",
            option="queues",
        )
    return {
        _queue_name(name): _queue(name, said) for name, said in cast("Mapping[Any, object]", queues).items()
    }


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


def _number(value: object) -> object:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _is_text(value: object, most: int = 127) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most
