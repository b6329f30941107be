"""Enqueueing on the user's own connection: the job exists if, and only if, the user's transaction commits."""

from typing import cast

import pytest

from staffa.errors import DatabaseError, SchemaError, UnsupportedConnection
from staffa.jobs import Job
from tests.support import Clock, Store, User, eventually, new_job


@pytest.fixture(autouse=True)
async def _users_table(store: Store) -> None:
    await store.sql("CREATE TABLE orders (id integer)")


async def enqueue(store: Store, user: User, *jobs: Job) -> list[Job]:
    return await store.connections.adopt(user.connection).run(store.engine.insert_jobs(jobs or [new_job()]))


def refused() -> Job:
    job = new_job()
    job.worker = cast("str", None)
    return job


async def orders(store: Store) -> list[int]:
    return [row[0] for row in await store.sql("SELECT id FROM orders ORDER BY id")]


async def test_the_job_is_there_when_the_users_transaction_commits(
    store: Store, user: User, clock: Clock
) -> None:
    await user.begin()
    await user.execute("INSERT INTO orders VALUES (1)")
    [job] = await enqueue(store, user, new_job(args={"order": 1}, schedule_in=1.5))

    assert user.in_transaction()
    assert await store.snapshot() == {}
    assert (job.id, job.inserted_at) == (1, clock.moment)

    await user.commit()
    row = await store.row(job.id)
    assert (row["args"], row["state"], row["scheduled_at"]) == ('{"order":1}', "scheduled", clock.after(1.5))
    assert await orders(store) == [1]


async def test_the_job_was_never_there_when_it_rolls_back(store: Store, user: User) -> None:
    await user.begin()
    await user.execute("INSERT INTO orders VALUES (1)")
    await enqueue(store, user)
    await enqueue(store, user, new_job(), new_job(schedule_in=5))

    await user.rollback()

    assert await store.snapshot() == {}
    assert await orders(store) == []


@pytest.mark.parametrize("count", [1, 3])
async def test_without_a_transaction_it_commits_as_the_connections_own_mode_would(
    store: Store, user: User, count: int
) -> None:
    await enqueue(store, user, *(new_job() for _ in range(count)))

    assert len(await store.snapshot()) == (count if user.commits_by_itself else 0)
    if not user.commits_by_itself:
        await user.commit()
    assert len(await store.snapshot()) == count


async def test_without_a_transaction_a_mode_that_waits_for_commit_can_roll_back(
    store: Store, user: User
) -> None:
    await enqueue(store, user)
    await enqueue(store, user, new_job(), new_job())

    if not user.commits_by_itself:
        await user.rollback()

    assert len(await store.snapshot()) == (3 if user.commits_by_itself else 0)


async def test_many_jobs_get_their_ids_in_order(store: Store, user: User) -> None:
    await user.begin()
    jobs = await enqueue(store, user, *(new_job(args={"n": n}) for n in range(200)))
    await user.commit()

    assert [job.id for job in jobs] == list(range(1, 201))
    assert (await store.row(77))["args"] == '{"n":76}'


async def test_a_savepoint_around_it_is_kept_or_rolled_back_by_itself(store: Store, user: User) -> None:
    await user.begin()
    await enqueue(store, user, new_job(queue="kept"))
    await user.execute("SAVEPOINT theirs")
    await enqueue(store, user, new_job(queue="gone"))
    await enqueue(store, user, new_job(queue="gone"), new_job(queue="gone"))
    await user.execute("ROLLBACK TO SAVEPOINT theirs")
    await enqueue(store, user, new_job(queue="kept"), new_job(queue="kept"))
    await user.execute("RELEASE SAVEPOINT theirs")
    await user.commit()

    assert await store.sql("SELECT DISTINCT queue, count(*) FROM {jobs} GROUP BY queue") == [("kept", 3)]


async def test_a_savepoint_of_the_users_with_our_name_is_not_disturbed(store: Store, user: User) -> None:
    await user.begin()
    await user.execute("SAVEPOINT staffa_1")
    await user.execute("INSERT INTO orders VALUES (1)")
    with pytest.raises(DatabaseError):
        await enqueue(store, user, new_job(), refused())
    await enqueue(store, user, new_job(), new_job())
    await user.execute("ROLLBACK TO SAVEPOINT staffa_1")
    await user.execute("INSERT INTO orders VALUES (2)")
    await user.commit()

    assert await orders(store) == [2]
    assert await store.snapshot() == {}


@pytest.mark.parametrize("count", [1, 3])
async def test_an_error_inside_leaves_the_users_transaction_usable(
    store: Store, user: User, count: int
) -> None:
    await user.begin()
    await user.execute("INSERT INTO orders VALUES (1)")
    good = [new_job() for _ in range(count - 1)]

    with pytest.raises(DatabaseError):
        await enqueue(store, user, *good, refused())

    assert user.in_transaction()
    await user.execute("INSERT INTO orders VALUES (2)")
    [job] = await enqueue(store, user)
    await user.commit()
    assert await orders(store) == [1, 2]
    assert list(await store.snapshot()) == [job.id]


@pytest.mark.parametrize("count", [1, 3])
async def test_an_error_outside_of_a_transaction_leaves_nothing_behind(
    store: Store, user: User, count: int
) -> None:
    good = [new_job() for _ in range(count - 1)]

    with pytest.raises(DatabaseError):
        await enqueue(store, user, *good, refused())

    assert not (user.commits_by_itself and user.in_transaction())
    [job] = await enqueue(store, user)
    if not user.commits_by_itself:
        await user.commit()
    assert list(await store.snapshot()) == [job.id]


async def test_the_users_settings_are_as_they_were(store: Store, user: User) -> None:
    before = await user.settings()

    await enqueue(store, user)
    await enqueue(store, user, new_job(), new_job())
    with pytest.raises(DatabaseError):
        await enqueue(store, user, refused())

    assert await user.settings() == before


async def test_missing_tables_say_which_command_to_run_and_leave_the_transaction_usable(
    store: Store, user: User
) -> None:
    await store.run(store.engine.migrations.down())
    await user.begin()
    await user.execute("INSERT INTO orders VALUES (1)")

    for jobs in ([new_job()], [new_job(), new_job()]):
        with pytest.raises(SchemaError, match=r"run `staffa migrate up --database \w+://\S+`") as caught:
            await enqueue(store, user, *jobs)
        assert store.url.partition("?")[0] in str(caught.value)

    await user.commit()
    assert await orders(store) == [1]


async def test_any_verb_can_run_in_the_users_transaction(store: Store, user: User) -> None:
    await store.producer.heartbeat()
    await user.begin()
    [job] = await enqueue(store, user, new_job(args={"ü": "世界"}))
    claim = await store.connections.adopt(user.connection).run(
        store.engine.ack_and_claim(store.producer.beat, [], 5)
    )
    found = await store.connections.adopt(user.connection).run(store.engine.get_job(job.id or 0))

    assert [(one.id, one.args) for one in claim.jobs] == [(job.id, {"ü": "世界"})]
    assert found is not None
    assert (found.state, found.queue) == ("executing", "default")
    await user.rollback()
    assert await store.snapshot() == {}


async def test_a_commit_of_the_users_is_noticed_by_who_watches(store: Store, user: User) -> None:
    """Nobody is woken by the enqueueing itself, for nobody knows whether it will be committed."""
    await store.run(store.engine.count_jobs())
    noticed: list[bool] = []
    unwatch = store.connections.watch(lambda: noticed.append(True))
    if unwatch is None:
        return

    async def noticed_after_a_commit() -> bool:
        await user.begin()
        await enqueue(store, user)
        await user.commit()
        return bool(noticed)

    try:
        await eventually(noticed_after_a_commit)  # the first look only learns where to begin
    finally:
        unwatch()


async def test_what_is_no_connection_is_refused_by_its_kind(store: Store) -> None:
    with pytest.raises(UnsupportedConnection, match=r"expected conn to be .*, got: builtins\.str"):
        store.connections.adopt("sqlite:///jobs.db")
