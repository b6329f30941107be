"""Which statements a process sends to SQLite: `record` is called before anything else is imported."""

import re
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any


def record(path: Path) -> None:
    """Append every statement of every connection opened from now on to that file, one a line."""
    file = path.open("a", buffering=1)

    def write(statement: str) -> None:
        if "data_version" not in statement:  # reads a counter in shared memory and no page
            file.write(" ".join(statement.split()) + "\n")

    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(write)
        return connection

    sqlite3.connect = traced  # type: ignore[assignment]  # with all overloads of the original


def recorded(path: Path) -> Counter[str]:
    """How often each statement was sent so far, its values left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(re.sub(r"'[^']*'|\b\d+(\.\d+)?\b", "?", line) for line in lines)
