"""The tables are made, brought up to date and taken away; never when they are not ours."""

from collections.abc import Awaitable, Callable, Mapping

import pytest

from staffa.errors import InvalidOption, SchemaError
from staffa.migrations import MigrationStatus
from tests.support import Claimer, Store

OURS = {
    *("oban_jobs", "oban_peers"),
    *("staffa_producers", "staffa_queues", "staffa_messages", "staffa_crons", "staffa_cron_runs"),
    "staffa_migrations",
}


@pytest.fixture
async def empty(store: Store) -> Store:
    """A database without our tables."""
    await store.run(store.engine.migrations.down())
    return store


async def tables(store: Store) -> set[str]:
    dialect = store.engine.migrations.dialect
    return {row[0] for row in await store.sql(dialect.tables_present, prefix=None)}


async def status(store: Store) -> MigrationStatus:
    return await store.run(store.engine.migrations.status())


async def test_up_makes_every_table_and_down_takes_them_away(empty: Store) -> None:
    migrations = empty.engine.migrations
    before = await tables(empty)
    assert not before & OURS

    up = await empty.run(migrations.up())
    assert await tables(empty) >= OURS
    assert await status(empty) == MigrationStatus(migrations.latest, migrations.latest)

    down = await empty.run(migrations.down())
    assert await tables(empty) == before
    assert await status(empty) == MigrationStatus(0, migrations.latest)
    assert [step.version for step in up] == [step.version for step in reversed(down)]


async def test_up_and_down_are_idempotent(store: Store) -> None:
    id = await store.insert()

    assert await store.run(store.engine.migrations.up()) == []
    assert await store.state(id) == "available"

    assert await store.run(store.engine.migrations.down()) != []
    assert await store.run(store.engine.migrations.down()) == []
    assert await store.run(store.engine.migrations.up(0)) == []
    assert (await status(store)).version == 0


async def test_down_and_up_again_leaves_no_job(store: Store) -> None:
    await store.insert_many(3)

    await store.run(store.engine.migrations.down())
    await store.run(store.engine.migrations.up())

    assert await store.snapshot() == {}


async def test_case_66_nodes_that_migrate_at_once_take_each_step_once(empty: Store) -> None:
    migrations = empty.engine.migrations

    async def up(node: Claimer) -> int:
        return len(await node.run(migrations.up()))

    taken = await empty.on_nodes(*[up] * 6)

    assert sum(taken) == len(migrations.steps)
    assert (await status(empty)).current
    assert await empty.sql("SELECT count(*) FROM {migrations}") == [(len(migrations.steps),)]


async def test_nodes_that_take_the_tables_away_at_once_do_it_once(store: Store) -> None:
    migrations = store.engine.migrations

    async def down(node: Claimer) -> int:
        return len(await node.run(migrations.down()))

    assert sum(await store.on_nodes(*[down] * 4)) == len(migrations.steps)
    assert (await status(store)).version == 0


async def test_case_66_newer_tables_are_refused_by_name_and_left_as_they_are(store: Store) -> None:
    await store.insert()
    newer = store.engine.migrations.latest + 1
    await store.sql("INSERT INTO {migrations} (version, name) VALUES (:newer, 'later')", newer=newer)
    before = await store.snapshot()

    found = await status(store)
    assert (found.version, found.current) == (newer, False)
    with pytest.raises(SchemaError, match=rf"newer than this code \(version {newer}.*upgrade the package"):
        found.verify()
    for steps in (store.engine.migrations.up(), store.engine.migrations.down()):
        with pytest.raises(SchemaError, match="newer than this code"):
            await store.run(steps)

    assert await store.snapshot() == before


async def test_a_foreign_table_of_our_name_is_refused_and_left_as_it_is(empty: Store) -> None:
    await empty.sql("CREATE TABLE oban_jobs (id integer, theirs varchar(10))")
    await empty.sql("INSERT INTO oban_jobs (id, theirs) VALUES (1, 'kept')")

    found = await status(empty)
    assert found.foreign
    for steps in (empty.engine.migrations.up(), empty.engine.migrations.down()):
        with pytest.raises(SchemaError, match="a table oban_jobs that Staffa did not make"):
            await empty.run(steps)

    assert await empty.sql("SELECT id, theirs FROM oban_jobs") == [(1, "kept")]
    assert "staffa_migrations" not in await tables(empty)


async def test_missing_tables_say_which_command_to_run(empty: Store) -> None:
    with pytest.raises(SchemaError, match="missing: run `staffa migrate up`"):
        (await status(empty)).verify()


@pytest.mark.parametrize("verb", ["insert", "claim", "ack", "stage", "rescue"])
async def test_a_verb_without_tables_says_which_command_to_run(empty: Store, verb: str) -> None:
    engine, beat = empty.engine, empty.producer.beat
    verbs: Mapping[str, Callable[[], Awaitable[object]]] = {
        "insert": empty.insert,
        "claim": lambda: empty.run(engine.ack_and_claim(beat, [], 1)),
        "ack": lambda: empty.run(engine.ack_jobs(beat, [])),
        "stage": lambda: empty.run(engine.stage_jobs(1, [])),
        "rescue": lambda: empty.run(engine.rescue_jobs(25, 1)),
    }

    with pytest.raises(SchemaError, match="staffa migrate up"):
        await verbs[verb]()


@pytest.mark.parametrize("version", [-1, 4711])
async def test_a_version_that_does_not_exist_is_refused(store: Store, version: int) -> None:
    for verb in (store.engine.migrations.up, store.engine.migrations.down):
        with pytest.raises(InvalidOption, match="version"):
            await store.run(verb(version))


async def test_a_step_that_breaks_off_leaves_nothing(empty: Store) -> None:
    await empty.sql("CREATE TABLE staffa_crons (theirs integer)")
    before = await tables(empty)

    with pytest.raises(Exception, match="staffa_crons"):
        await empty.run(empty.engine.migrations.up())

    assert await tables(empty) == before
    await empty.sql("DROP TABLE staffa_crons")
    await empty.run(empty.engine.migrations.up())
    assert (await status(empty)).current


async def test_ids_are_never_used_twice_even_when_the_newest_job_is_deleted(store: Store) -> None:
    [first, newest] = await store.insert_many(2)
    await store.sql("DELETE FROM {jobs} WHERE id = :id", id=newest)

    assert await store.insert() > newest
    assert first < newest
