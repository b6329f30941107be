"""The two look-ups by name: workers, for stored jobs, and instances, for the shortcut `await Email.enqueue(…)`."""

import importlib
import logging
import weakref
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from staffa.errors import UnknownInstance, UnknownWorker
from staffa.jobs import Job

if TYPE_CHECKING:
    from staffa.worker import Worker

__all__ = [
    "Instance",
    "enter_instance",
    "forget_instance",
    "instance_for",
    "instances",
    "leave_instance",
    "register_instance",
    "register_worker",
    "resolve",
]

log = logging.getLogger("staffa.registry")

# A stored job has only its worker's name.
_workers: "dict[str, type[Worker]]" = {}
_performers: "dict[type[Worker], Worker]" = {}


def register_worker(cls: "type[Worker]") -> None:
    """Note a worker under its name and its aliases."""
    for name in (cls.options.name, *cls.options.aliases):
        known = _workers.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            log.warning("two workers are called %r: %s, and now %s, which gets its jobs", name, known, cls)
        _workers[name] = cls


def resolve(name: str) -> "Worker":
    """The worker of that name; its module is imported when it has not been yet.

    Raises:
        UnknownWorker: There is none; the message says why.
    """
    cls = _workers.get(name) or _imported(name)
    if cls not in _performers:
        _performers[cls] = cls()
    return _performers[cls]


def _imported(name: str) -> "type[Worker]":
    module = name.rpartition(".")[0]
    while module:
        if all(part.isidentifier() for part in module.split(".")):
            try:
                importlib.import_module(module)
                break
            except ModuleNotFoundError as error:
                if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
                    raise UnknownWorker(name, f"importing {module} failed: {error}") from error
            except (Exception, SystemExit) as error:  # a script that was never meant to be imported may exit
                raise UnknownWorker(
                    name, f"importing {module} failed: {type(error).__name__}: {error}"
                ) from error
        module = module.rpartition(".")[0]
    if name in _workers:
        return _workers[name]
    where = f"the module {module} does not define it" if module else "no module of that name can be imported"
    raise UnknownWorker(
        name,
        f"{where} (is it imported by the module that you start? renamed: keep its older names in aliases=[…])",
    )


class Instance(Protocol):
    """What a worker needs of an instance: a name, and the way in."""

    @property
    def name(self) -> str:
        """The instance's name."""
        ...

    @property
    def database(self) -> str:
        """Where its jobs live."""
        ...

    def enqueue(self, job: Job, /, *, conn: object = None) -> Awaitable[Job]:
        """Store a job."""
        ...


_instances: "weakref.WeakSet[Instance]" = weakref.WeakSet()
_closed: "weakref.WeakSet[Instance]" = weakref.WeakSet()
_entered: list["weakref.ref[Instance]"] = []


def register_instance(instance: Instance) -> None:
    """Note an instance that is made or used, so that workers find it."""
    _instances.add(instance)
    _closed.discard(instance)


def forget_instance(instance: Instance) -> None:
    """The instance was closed: workers prefer another one until it is used again."""
    _closed.add(instance)


def enter_instance(instance: Instance) -> None:
    """The instance runs: from now on it is the one that workers use when there are several."""
    _entered.append(weakref.ref(instance))


def leave_instance(instance: Instance) -> None:
    """The instance has stopped."""
    _entered[:] = [ref for ref in _entered if ref() not in (None, instance)]


def instances() -> list[Instance]:
    """The instances of this process. Closed ones count only where they would make a difference: with another database."""
    everyone = list(_instances)
    if len(everyone) == 1:
        return everyone
    still_open = [instance for instance in everyone if instance not in _closed]
    same = len({instance.database for instance in everyone}) == 1
    return still_open if still_open and same else everyone


def instance_for(worker: "type[Worker]") -> Instance:
    """The instance that a worker enqueues into: its own, the only one there is, or the one entered last.

    Raises:
        UnknownInstance: There is none, or nothing tells which of several.
    """
    if worker.app is not None:
        return worker.app
    running = [instance for ref in _entered if (instance := ref()) is not None]
    everyone = instances()
    if len(everyone) == 1:
        return everyone[0]
    if running:
        return running[-1]
    name = worker.options.name
    if not everyone:
        raise UnknownInstance(
            f"{name} cannot enqueue: there is no instance; make one with Staffa(…), or give app=…"
        )
    names = ", ".join(sorted(f"{instance.name!r} ({instance.database})" for instance in everyone))
    raise UnknownInstance(f"{name} cannot tell which instance to use of {names}: give app=… to the worker")
