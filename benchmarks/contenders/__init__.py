"""Frameworks for background jobs: ours and a peer."""
