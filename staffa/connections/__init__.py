"""How steps are run: on our own connections, by URL, and on the connections of users."""

from staffa.connections.base import URL, Adopted, Connections, Dedicated, parse_url
from staffa.connections.postgres import PostgresConnections
from staffa.connections.sqlite import SQLiteConnections
from staffa.errors import InvalidOption

__all__ = ["URL", "Adopted", "Connections", "Dedicated", "connections_for", "parse_url"]


def connections_for(url: URL) -> Connections:
    """The connections that a URL asks for."""
    match url.kind:
        case "sqlite":
            return SQLiteConnections(url)
        case "postgres":
            return PostgresConnections(url)
        case _:
            raise InvalidOption(
                f"expected url to be one like sqlite:///jobs.db or postgresql://host/name, got: {url.safe}; "
                "this version does not run on MySQL or MariaDB",
                option="url",
            )
