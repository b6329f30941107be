"""A peer that asks nobody: it always leads, or never.

Where every node leads, every node stages, rescues and prunes. That is safe, for each of those verbs is one
transaction that takes only rows still in the state it looks for.
"""

__all__ = ["IsolatedPeer"]


class IsolatedPeer:
    """The constant answer."""

    def __init__(self, *, leads: bool = True) -> None:
        self._leads = leads

    @property
    def leads(self) -> bool:
        """The answer given at birth."""
        return self._leads

    async def start(self) -> None:
        """Nobody to ask."""

    async def stop(self) -> None:
        """Nobody to tell."""
