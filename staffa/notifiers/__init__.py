"""The notifiers: within a process, and over PostgreSQL. `notifier_for` makes the one that fits the connections."""

from collections.abc import Sequence

from staffa.connections import Connections
from staffa.connections.postgres import PostgresConnections
from staffa.engine import Engine, Notice
from staffa.notifier import Notifier
from staffa.notifiers.local import LocalNotifier
from staffa.notifiers.postgres import PostgresNotifier

__all__ = ["LocalNotifier", "PostgresNotifier", "notifier_for"]


def notifier_for(
    connections: Connections, engine: Engine, *, instance: str, node: str, prefix: str | None, enabled: bool
) -> Notifier:
    """The notifier for an instance.

    Args:
        connections: The instance's; they decide which notifier it is.
        engine: Sends messages, where the database delivers them.
        instance: The instance's name.
        node: The node's name.
        prefix: The schema of the tables.
        enabled: Whether messages go to other processes, and are heard from them.
    """
    if not isinstance(connections, PostgresConnections):
        return LocalNotifier(instance, connections.topic)

    async def send(channel: str, payloads: Sequence[str]) -> None:
        await connections.run(engine.notify(Notice(channel, payloads)))

    return PostgresNotifier(
        instance,
        prefix,
        connections.connect,
        send,
        node=node,
        topic=connections.topic,
        is_ours=connections.is_served_by,
        enabled=enabled,
    )
