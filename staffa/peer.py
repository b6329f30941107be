"""The contract of a peer: this node's part in agreeing who leads."""

from typing import Protocol

__all__ = ["Peer"]


class Peer(Protocol):
    """Answers whether this node may do what one node at a time should do."""

    @property
    def leads(self) -> bool:
        """Whether this node leads now."""
        ...

    async def start(self) -> None:
        """Begin to stand for election."""
        ...

    async def stop(self) -> None:
        """Resign."""
        ...
