"""The built-in plugins."""

from staffa.plugin import Plugin
from staffa.plugins.lifeline import Lifeline
from staffa.plugins.pruner import Pruner

__all__ = ["Lifeline", "Plugin", "Pruner"]
