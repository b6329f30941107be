"""Which statements a process sends to its database: `record` is called before anything else is imported."""

import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncpg.protocol import Protocol


def record(path: Path) -> None:
    """Append every statement of every connection opened from now on to that file, one a line."""
    file = path.open("a", buffering=1)

    def write(statement: str) -> None:
        file.write(" ".join(statement.split()) + "\n")

    _record_sqlite(write)
    _record_asyncpg(write)


def recorded(path: Path) -> Counter[str]:
    """How often each statement was sent so far, its values left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(re.sub(r"'[^']*'|(?<!\$)\b\d+(\.\d+)?\b", "?", line) for line in lines)


def _record_sqlite(write: Callable[[str], None]) -> None:
    def note(statement: str) -> None:
        if "data_version" not in statement:  # reads a counter in shared memory and no page
            write(statement)

    module: Any = sqlite3
    connect = module.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(note)
        return connection

    module.connect = traced


def _record_asyncpg(write: Callable[[str], None]) -> None:
    """At the protocol, because asyncpg's own query loggers do not hear of prepared statements."""
    protocol: Any = Protocol
    query, execute = protocol.query, protocol.bind_execute

    def noted_query(self: object, text: str, *args: Any, **options: Any) -> Any:
        write(text)
        return query(self, text, *args, **options)

    def noted_execute(self: object, *args: Any, **options: Any) -> Any:
        state = options.get("state") or args[0]
        write(state.query)
        return execute(self, *args, **options)

    protocol.query, protocol.bind_execute = noted_query, noted_execute
