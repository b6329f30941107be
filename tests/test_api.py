"""The public surface, written down once and held to it: a watchman."""

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType

import staffa
from staffa import errors

PUBLIC = {
    *("Job", "RunningJob", "JobState", "JobFailure", "current_job", "Cancel", "Discard", "Snooze"),
    *("Worker", "job"),
    *("Staffa", "Queue", "QueueInfo"),
    *("Plugin", "Lifeline", "Pruner"),
    *("StaffaError", "InvalidJob", "DatabaseUnavailable"),
}
SUBMODULES = ("errors", "telemetry", "plugins", "engines", "migrations")


def public_things() -> Iterator[tuple[str, object]]:
    """Every public class and function, with its path, and every public method and property of the classes."""
    modules = [staffa, *(importlib.import_module(f"staffa.{name}") for name in SUBMODULES)]
    for module in modules:
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", thing
            if inspect.isclass(thing):
                for member, value in vars(thing).items():
                    inner = getattr(value, "__func__", getattr(value, "fget", value))
                    if not member.startswith("_") and inspect.isfunction(inner):
                        yield f"{module.__name__}.{name}.{member}", inner


def test_the_public_names_are_those_that_are_written_down() -> None:
    assert set(staffa.__all__) == PUBLIC
    assert len(staffa.__all__) == len(PUBLIC)


def test_everything_that_can_be_seen_is_exported() -> None:
    seen = {
        name
        for name, thing in vars(staffa).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType)
    }

    assert seen == PUBLIC


def test_every_public_class_function_and_method_has_a_docstring() -> None:
    things = list(public_things())

    assert len(things) > 100
    assert [path for path, thing in things if not inspect.getdoc(thing)] == []


def test_every_error_is_exported() -> None:
    defined = {
        name
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and thing.__module__ == "staffa.errors"
    }

    assert set(errors.__all__) == defined
    assert list(errors.__all__) == sorted(errors.__all__)


def test_the_tree_that_is_drawn_is_the_tree_of_the_errors() -> None:
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        word = line.strip("│├└─ ").partition(" ")[0]
        if word in errors.__all__:
            drawn.append((line.index(word), word))
    parents = {
        word: next((above for depth, above in reversed(drawn[:at]) if depth < column), "Exception")
        for at, (column, word) in enumerate(drawn)
    }

    assert set(parents) == set(errors.__all__) - {"Problem"}
    for word, parent in parents.items():
        assert getattr(errors, word).__bases__[0].__name__ == parent


def test_problems_of_any_kind_can_be_caught_as_one() -> None:
    assert all(
        issubclass(getattr(errors, name), errors.StaffaError) for name in errors.__all__ if name != "Problem"
    )
