"""The peers: one for each way of agreeing."""

from staffa.peers.isolated import IsolatedPeer

__all__ = ["IsolatedPeer"]
