"""Fixtures: `store` and `user` (on every engine), `postgres`, `producer`, `clock`, `app`; and the watch for what a test leaves behind."""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator, Generator, Iterable
from pathlib import Path
from typing import NoReturn

import pytest

from staffa import Staffa
from tests.support import ENGINES, Claimer, Clock, PostgresStore, ServerMissing, Store, User

STOPS_WITHIN = 60.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        choices=list(ENGINES),
        help="run the contract suite on this engine only; may be said several times",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    engines: list[str] = metafunc.config.getoption("--engine") or list(ENGINES)
    for odd in ("odd_row", "odd_meta", "odd_claimant"):
        if odd in metafunc.fixturenames:
            values = [(name, each) for name in engines for each in ENGINES[name].odd[odd].values()]
            ids = [f"{name}-{shown}" for name in engines for shown in ENGINES[name].odd[odd]]
            metafunc.parametrize(("store", odd), values, indirect=["store"], ids=ids)
            return
    if "postgres" in metafunc.fixturenames:
        engines = [name for name in engines if name == "postgres"]
    if "user" in metafunc.fixturenames:
        pairs = [(name, kind) for name in engines for kind in ENGINES[name].users]
        ids = [f"{name}-{kind}" for name, kind in pairs]
        metafunc.parametrize(("store", "user"), pairs, indirect=True, ids=ids)
    elif "store" in metafunc.fixturenames:
        metafunc.parametrize("store", engines, indirect=True)


@pytest.fixture
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Store, None]:
    """A fresh, migrated, empty database of each engine; skips where a capability that is asked for is missing."""
    name: str = request.param
    try:
        context = ENGINES[name].fresh(tmp_path)
        store = await context.__aenter__()
    except ServerMissing as missing:
        _without_server(name, missing)
    try:
        marks: Iterable[pytest.Mark] = request.node.iter_markers("requires")
        for mark in marks:
            if not getattr(store.engine, mark.args[0]):
                pytest.skip(f"{name}: no {mark.args[0]}")
        yield store
    finally:
        await context.__aexit__(None, None, None)
    _no_tasks_left()


@pytest.fixture
def postgres(store: Store) -> PostgresStore:
    """The store of PostgreSQL: for what only that database has."""
    assert isinstance(store, PostgresStore)
    return store


@pytest.fixture
async def user(request: pytest.FixtureRequest, store: Store) -> User:
    """A connection of the user's own, of every kind that the store's database has."""
    return await store.user(request.param)


@pytest.fixture
def producer(store: Store) -> Claimer:
    """The producer of the queue `default`."""
    return store.producer


@pytest.fixture
def clock(store: Store) -> Clock:
    """The store's engine takes this for the present moment; it moves only when it is told."""
    clock = Clock()
    store.engine.now = clock
    return clock


@pytest.fixture
async def app(tmp_path: Path) -> AsyncGenerator[Staffa, None]:
    """An instance on a fresh file of the embedded database, with the queue `default`; not started, stopped at the end."""
    app = Staffa(f"sqlite:///{tmp_path / 'jobs.db'}", queues={"default": 10})
    yield app
    await app.close()
    _no_tasks_left()


@pytest.fixture(autouse=True)
def _no_threads_left() -> Generator[None, None, None]:
    """A test that leaves a thread of ours behind fails."""
    before = set(threading.enumerate())
    yield
    left = _threads_since(before)
    if left:
        gc.collect()  # instances that the test forgot give their files up when they go
        for thread in left:
            thread.join(STOPS_WITHIN)
    assert not _threads_since(before), "the test left threads behind"


def _threads_since(before: set[threading.Thread]) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one not in before and one.name.startswith("staffa")]


def _no_tasks_left() -> None:
    left = [task for task in asyncio.all_tasks() if task.get_name().startswith("staffa") and not task.done()]
    assert not left, "the test left tasks behind"


def _without_server(name: str, missing: ServerMissing) -> NoReturn:
    """A missing server is a nuisance on a laptop and an error in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name}: {missing}")
    pytest.skip(f"{name}: {missing}")
