"""The engines: one for each kind of database. `engine_for` makes the one that a URL asks for."""

from collections.abc import Callable

from staffa.engine import Engine
from staffa.engines.postgres import PostgresEngine
from staffa.engines.sqlite import SQLiteEngine
from staffa.errors import InvalidOption

__all__ = ["Engine", "PostgresEngine", "SQLiteEngine", "engine_for"]

ENGINES: dict[str, Callable[[str | None], Engine]] = {"sqlite": SQLiteEngine, "postgres": PostgresEngine}


def engine_for(kind: str, prefix: str | None = None) -> Engine:
    """The engine for one kind of database, its tables under `prefix`."""
    if kind not in ENGINES:
        known = " or ".join(f"{one}://…" for one in ENGINES)
        raise InvalidOption(
            f"expected url to be {known}, which this version runs on, got: {kind}://…", option="url"
        )
    return ENGINES[kind](prefix)
