"""The notifiers: one for each way in which messages can travel."""

from staffa.notifiers.local import LocalNotifier

__all__ = ["LocalNotifier"]
