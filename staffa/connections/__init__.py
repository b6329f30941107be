"""How steps are run: on our own connections, by URL, and on the connections of users."""

import sqlite3

from staffa.connections.base import URL, Adopted, Connections, Dedicated, parse_url
from staffa.connections.sqlite import AdoptedSQLite, SQLiteConnections
from staffa.errors import InvalidOption, UnsupportedConnection

__all__ = ["URL", "Adopted", "Connections", "Dedicated", "adopt", "connections_for", "parse_url"]


def connections_for(url: URL) -> Connections:
    """The connections that a URL asks for."""
    if url.kind == "sqlite":
        return SQLiteConnections(url)
    raise InvalidOption(f"expected url to be one like sqlite:///jobs.db, got: {url.safe}", option="url")


def adopt(connection: object) -> Adopted:
    """Wrap a connection of the user's own.

    Raises:
        UnsupportedConnection: It is of a kind that Staffa does not know; the message lists those it does.
    """
    if isinstance(connection, sqlite3.Connection):
        return AdoptedSQLite(connection)
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise UnsupportedConnection(f"expected conn to be a sqlite3.Connection, got: {kind}")
