"""Tables that Oban for Elixir or its Python port has made are taken into use as they are, and left as they were."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from staffa.connections.postgres import PostgresConnections
from staffa.engine import Ack
from staffa.engines import PostgresEngine
from staffa.errors import DatabaseUnavailable, SchemaError
from staffa.migrations import Migration, MigrationStatus
from staffa.steps import Rows
from tests.support import (
    PAST,
    Claimer,
    Clock,
    PostgresStore,
    completed,
    entry,
    eventually,
    failed,
    new_job,
    snoozed,
)
from tests.support.oban_tables import OBAN, OLD_OBAN, PORT

TABLES = {**OBAN, **PORT}
OURS = {f"staffa_{name}" for name in ("producers", "queues", "messages", "crons", "cron_runs", "migrations")}

# Everything about their tables that an adoption must leave as it is.
SHAPE = """
SELECT 'column', concat_ws(' ', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
    pg_get_expr(d.adbin, d.adrelid), a.attidentity)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = to_regnamespace(quote_ident(:schema)) AND c.relkind = 'r' AND starts_with(c.relname, 'oban_') AND a.attnum > 0
UNION ALL SELECT 'constraint', concat_ws(' ', conname, pg_get_constraintdef(oid)) FROM pg_constraint
    WHERE connamespace = to_regnamespace(quote_ident(:schema)) AND conname ~ '^(oban_|attempt|positive|non_neg|priority|queue|worker)'
UNION ALL SELECT 'comment', obj_description(to_regclass(quote_ident(:schema) || '.oban_jobs'), 'pg_class')
UNION ALL SELECT 'trigger', tgname::text FROM pg_trigger
    WHERE tgrelid = to_regclass(quote_ident(:schema) || '.oban_jobs') AND NOT tgisinternal
UNION ALL SELECT 'label', enumlabel::text FROM pg_enum JOIN pg_type ON pg_type.oid = enumtypid
    WHERE typnamespace = to_regnamespace(quote_ident(:schema))
ORDER BY 1, 2
"""

INDEXES = """
SELECT indexname, indexdef, indisvalid FROM pg_indexes
    JOIN pg_index ON indexrelid = to_regclass(quote_ident(schemaname) || '.' || indexname)
WHERE schemaname = :schema AND tablename = 'oban_jobs'
"""

# As Oban writes them.
ELIXIR_ERROR = '{"at": "2026-11-21T22:03:09.099527Z", "error": "** (ArgumentError) boom\\n    lib/obx.ex:15", "attempt": 1}'


class Existing:
    """A database in which the table of jobs is somebody else's."""

    def __init__(self, store: PostgresStore, schema: str) -> None:
        self.store = store
        self.schema = schema
        self.migrations = store.engine.migrations

    async def status(self) -> MigrationStatus:
        return await self.store.run(self.migrations.status())

    async def up(self) -> list[Migration]:
        return await self.store.run(self.migrations.up())

    async def down(self) -> list[Migration]:
        return await self.store.run(self.migrations.down())

    async def shape(self) -> Rows:
        return await self.store.sql(SHAPE, schema=self.schema)

    async def indexes(self) -> Mapping[str, tuple[str, bool]]:
        rows = await self.store.sql(INDEXES, schema=self.schema)
        return {name: (text, valid) for name, text, valid in rows}

    async def tables(self) -> set[str]:
        return {row[0] for row in await self.store.sql("{tables_present}", prefix=self.schema)}

    async def rows(self) -> Rows:
        return await self.store.sql("SELECT to_jsonb(j)::text FROM {jobs} AS j ORDER BY id")


async def existing_in(store: PostgresStore, statements: Sequence[str], prefix: str | None = None) -> Existing:
    """Let somebody else make the tables."""
    await store.run(store.engine.migrations.down())
    store.engine = PostgresEngine(prefix)
    store.producer = store.new_producer()
    schema = prefix or "public"
    connection = await store.raw_connection()
    if prefix:
        await connection.execute(f'CREATE SCHEMA "{prefix}"; SET search_path TO "{prefix}"')
    await connection.execute(";".join(statements))
    return Existing(store, schema)


PLACES = [*((name, None) for name in TABLES), ("oban-11", "Their Own"), ("port-jsonb-tags", "private")]


@pytest.fixture(params=PLACES, ids=lambda place: "-in-".join(filter(None, place)))
async def existing(request: pytest.FixtureRequest, postgres: PostgresStore) -> Existing:
    """The tables of each version, and some under a prefix."""
    name, prefix = request.param
    return await existing_in(postgres, TABLES[name], prefix)


@pytest.fixture
async def oban(postgres: PostgresStore) -> Existing:
    """The tables of Oban's latest version."""
    return await existing_in(postgres, TABLES["oban-14"])


async def plant(existing: Existing) -> None:
    await existing.store.sql(
        "INSERT INTO {jobs} (worker, args, state) VALUES ('Obx.Noop', '{\"n\": 1}', 'completed')"
    )
    await existing.store.sql("INSERT INTO {jobs} (worker, queue) VALUES ('Obx.Noop', 'other')")


async def test_they_are_recognised_and_said_to_be_usable(existing: Existing) -> None:
    status = await existing.status()

    assert (status.version, status.foreign, status.usable, status.current) == (0, True, True, False)
    with pytest.raises(
        SchemaError, match=r"a table oban_jobs of Oban's, which Staffa can use.*`staffa migrate up`"
    ):
        status.verify()


async def test_up_puts_our_tables_beside_and_leaves_theirs_as_they_are(existing: Existing) -> None:
    await plant(existing)
    shape, rows, indexes = await existing.shape(), await existing.rows(), await existing.indexes()
    peers = "oban_peers" in await existing.tables()

    taken = await existing.up()

    status = await existing.status()
    assert [step.version for step in taken] == list(range(1, status.latest + 1))
    assert (status.current, status.adopted, status.foreign) == (True, True, False)
    assert await existing.tables() >= OURS | {"oban_jobs", "oban_peers"}
    after = await existing.shape()
    assert after == shape if peers else [one for one in after if "oban_peers" not in one[1]] == shape
    assert await existing.rows() == rows
    now = await existing.indexes()
    assert {name: now[name] for name in indexes} == indexes
    assert all(valid for _, valid in now.values())
    assert await existing.up() == []


async def test_every_purpose_has_one_index_and_no_index_is_made_twice(existing: Existing) -> None:
    before = set(await existing.indexes())

    await existing.up()

    made = set(await existing.indexes()) - before
    for index in existing.migrations.adoption.indexes if existing.migrations.adoption else ():
        assert (index.name in made) != bool(before & set(index.like)), index


async def test_down_leaves_their_tables_with_the_jobs_in_them(existing: Existing) -> None:
    await plant(existing)
    tables, indexes = await existing.tables(), await existing.indexes()
    await existing.up()
    await existing.store.insert()
    rows = await existing.rows()

    await existing.down()

    assert await existing.rows() == rows
    assert len(rows) == 3
    assert await existing.indexes() == indexes
    assert await existing.tables() - {"oban_peers"} == tables - {"oban_peers"}
    assert (await existing.status()).usable
    await existing.up()
    assert (await existing.status()).current


async def test_a_job_goes_its_whole_life_on_them(existing: Existing, clock: Clock) -> None:
    await existing.up()
    store = existing.store
    store.engine.now = clock
    id = await store.insert(args={"n": 1}, tags=["a", "b"], meta={"k": "v"}, priority=3, max_attempts=30)
    job = await store.producer.claim_one()
    assert (job.args, job.tags, job.meta, job.priority) == ({"n": 1}, ["a", "b"], {"k": "v"}, 3)

    await store.producer.ack(failed(job, 0, "first"))
    for n in range(2, 25):
        await store.run(store.engine.stage_jobs(10, ["default"]))
        clock.advance(1)
        again = await store.producer.claim_one()
        assert [one.attempt for one in again.errors][:1] == [1]
        await store.producer.ack(failed(again, 0, f"failure {n}"))

    stored = await store.job(id)
    assert [one.attempt for one in stored.errors] == [1, *range(6, 25)]
    assert (stored.state, stored.attempt, stored.errors[-1].summary) == ("retryable", 24, "failure 24")

    await store.run(store.engine.stage_jobs(10, ["default"]))
    await store.producer.ack(snoozed(await store.producer.claim_one(), 0))
    stored = await store.job(id)
    assert (stored.state, stored.attempt, stored.meta) == ("scheduled", 24, {"k": "v", "snoozed": 1})

    await store.run(store.engine.stage_jobs(10, ["default"]))
    last = await store.producer.claim_one()
    assert (await store.producer.heartbeat())[0].id == id
    assert (await store.producer.round_trip([completed(last)])).lost == []
    stored = await store.job(id)
    assert (stored.state, stored.completed_at) == ("completed", clock.moment)

    clock.advance(60)
    assert await store.run(store.engine.prune_jobs({"completed": 30}, 10)) == {"completed": 1}
    assert await store.snapshot() == {}


async def test_jobs_of_every_kind_go_in_with_one_call_and_are_claimed(existing: Existing) -> None:
    await existing.up()
    store, engine = existing.store, existing.store.engine
    jobs = [
        new_job(args={"n": n}, tags=["t", str(n)] if n % 2 else [], priority=n % 4, max_attempts=n + 1)
        for n in range(8)
    ]
    alike = [new_job(tags=["x"], queue="other") for _ in range(3)]

    await store.run(engine.insert_jobs(jobs))
    await store.run(engine.insert_jobs(alike))
    claimed = await store.producer.claim()

    assert {job.id: (job.args, job.tags, job.priority) for job in claimed} == {
        job.id: (job.args, job.tags, job.priority) for job in jobs
    }
    assert [(await store.job(job.id)).tags for job in alike] == [["x"]] * 3
    assert await store.producer.ack(*(completed(job) for job in claimed)) == []


async def test_jobs_of_a_dead_node_are_rescued_and_used_up_ones_discarded(
    existing: Existing, clock: Clock
) -> None:
    await existing.up()
    store = existing.store
    store.engine.now = clock
    await store.producer.heartbeat()
    await store.insert(max_attempts=1)
    again = await store.insert()
    used_up, _ = await store.producer.claim()
    clock.advance(26)

    rescued = await store.run(store.engine.rescue_jobs(25, 10))

    assert {one.id: one.state for one in rescued} == {used_up.id: "discarded", again: "available"}
    stored = await store.job(used_up.id)
    assert (stored.meta, len(stored.errors)) == ({"rescued": 1}, 1)


async def test_jobs_are_cancelled_and_retried(existing: Existing) -> None:
    await existing.up()
    store = existing.store
    id = await store.insert(max_attempts=1)
    job = await store.producer.claim_one()

    cancelled = await store.run(store.engine.cancel_job(id))
    assert cancelled is not None
    assert (cancelled.state, [one.id for one in await store.producer.ack(completed(job))]) == (
        "cancelled",
        [id],
    )
    retried = await store.run(store.engine.retry_job(id))
    assert retried is not None
    assert (retried.state, retried.max_attempts) == ("available", 2)
    assert (await store.producer.claim_one()).attempt == 2


async def test_rows_of_elixir_are_read_and_run(postgres: PostgresStore) -> None:
    existing = await existing_in(postgres, TABLES["oban-13"])
    await postgres.sql(
        "INSERT INTO {jobs} (worker, args, errors, attempt, attempted_by, meta, tags) VALUES "
        "('Obx.Noop', '{\"n\": 0}', '{}', 0, NULL, NULL, NULL), "
        "('Obx.Fail', '{}', ARRAY[:error::text::jsonb], 1, '{ex-1,a7917ce1}', '{}', '{a,b}')",
        error=ELIXIR_ERROR,
    )
    await existing.up()

    first, second = await postgres.producer.claim()

    assert (first.args, first.meta, first.tags, first.errors) == ({"n": 0}, {}, [], [])
    assert [(one.attempt, one.summary) for one in second.errors] == [(1, "** (ArgumentError) boom")]
    await postgres.producer.ack(snoozed(first), failed(second))
    assert (await postgres.job(first.id)).meta == {"snoozed": 1}
    assert [one.attempt for one in (await postgres.job(second.id)).errors] == [1, 2]


async def test_version_11_is_told_of_new_jobs_by_its_own_trigger_too(postgres: PostgresStore) -> None:
    existing = await existing_in(postgres, TABLES["oban-11"])
    await existing.up()
    heard = await postgres.listening("public.oban_insert")

    await postgres.insert_many(3)

    await eventually(lambda: heard)
    assert "default" in heard[0]


async def test_claimants_of_a_type_that_no_ack_can_be_compared_to_are_refused(
    postgres: PostgresStore,
) -> None:
    statements = [
        text.replace("attempted_by text[]", "attempted_by character varying(255)[]")
        for text in OBAN["oban-13"]
    ]
    assert statements != OBAN["oban-13"]
    existing = await existing_in(postgres, statements)

    status = await existing.status()

    assert not status.usable
    with pytest.raises(SchemaError, match=r"its column attempted_by to be text\[\], got: character varying"):
        await existing.up()


# Adoption that does not go straight through.


async def test_an_invalid_index_that_was_left_behind_is_made_anew(existing: Existing) -> None:
    store = existing.store
    await existing.up()
    await store.sql("DELETE FROM {migrations}")
    await store.sql("DROP INDEX {table oban_jobs_unique}")
    await store.sql(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)",
        name=f'"{existing.schema}".oban_jobs_executing',
    )
    assert (await existing.status()).usable

    await existing.up()

    assert (await existing.status()).current
    indexes = await existing.indexes()
    assert all(valid for _, valid in indexes.values())
    assert {"oban_jobs_executing", "oban_jobs_unique"} <= indexes.keys()


async def test_an_adoption_that_was_broken_off_goes_on(oban: Existing) -> None:
    """The connection is cut while an index waits for an old transaction."""
    holder = await oban.store.raw_connection()
    await holder.execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('Obx.Slow')")
    up = asyncio.create_task(oban.up())
    await eventually(lambda: _indexing(oban.store))
    await oban.store.sql(INDEXING.replace("1", "pg_terminate_backend(pid)", 1))
    with pytest.raises(DatabaseUnavailable):
        await up
    await holder.execute("COMMIT")
    assert (await oban.status()).usable
    assert "staffa_migrations" in await oban.tables()
    assert False in {valid for _, valid in (await oban.indexes()).values()}

    await oban.up()

    assert (await oban.status()).current
    assert all(valid for _, valid in (await oban.indexes()).values())
    assert len(await oban.rows()) == 1


async def test_an_adoption_waits_for_the_index_that_another_one_is_making(oban: Existing) -> None:
    """A node that goes away does not take the statement with it which the server is at."""
    holder = await oban.store.raw_connection()
    await holder.execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('Obx.Slow')")
    first = asyncio.create_task(oban.up())
    await eventually(lambda: _indexing(oban.store))
    connections = oban.store.connections
    assert isinstance(connections, PostgresConnections)
    for connection in [one for pool in connections._pools.values() for one in pool._open]:
        connection.terminate()
    with pytest.raises(DatabaseUnavailable):
        await first

    again = asyncio.create_task(oban.up())
    await eventually(lambda: _waiting(oban.store))
    await holder.execute("COMMIT")

    assert [step.version for step in await again] == [1]
    assert all(valid for _, valid in (await oban.indexes()).values())


INDEXING = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND state = 'active'"


async def _indexing(store: PostgresStore) -> bool:
    return bool(await store.sql(INDEXING))


async def _waiting(store: PostgresStore) -> bool:
    return bool(
        await store.sql("SELECT 1 FROM pg_locks WHERE mode = 'ShareUpdateExclusiveLock' AND NOT granted")
    )


async def test_nodes_that_adopt_at_once_all_succeed_and_note_it_once(oban: Existing) -> None:
    await plant(oban)

    async def up(node: Claimer) -> int:
        return len(await node.run(oban.migrations.up()))

    taken = await oban.store.on_nodes(*[up] * 3)

    assert sum(taken) == oban.migrations.latest
    assert (await oban.status()).current
    assert all(valid for _, valid in (await oban.indexes()).values())
    assert await oban.store.sql("SELECT version, name FROM {migrations}") == [(1, "adopted")]


async def test_writers_go_on_while_indexes_are_made(oban: Existing) -> None:
    holder = await oban.store.raw_connection()
    await holder.execute("BEGIN; INSERT INTO oban_jobs (worker) VALUES ('Obx.Slow')")
    up = asyncio.create_task(oban.up())
    await eventually(lambda: _indexing(oban.store))

    await oban.store.sql("INSERT INTO {jobs} (worker) VALUES ('Obx.Noop')")

    assert not up.done()
    await holder.execute("COMMIT")
    await up
    assert len(await oban.rows()) == 2


async def test_what_has_the_name_of_an_index_of_ours_is_left_alone_and_named(oban: Existing) -> None:
    await oban.store.sql("CREATE TABLE oban_jobs_due (theirs integer)")

    with pytest.raises(
        SchemaError, match=r"the index oban_jobs_due could not be made .something else has that name"
    ):
        await oban.up()

    await oban.store.sql("DROP TABLE oban_jobs_due")
    await oban.up()
    assert (await oban.status()).current


# What cannot be used.

UNUSABLE = {
    "old": (OLD_OBAN, r"of version 10 of Oban's migrations, and Staffa needs 11 or newer: run Oban's own"),
    "older": (
        (
            *OLD_OBAN,
            "ALTER TABLE oban_jobs DROP meta, DROP cancelled_at",
            "COMMENT ON TABLE oban_jobs IS '8'",
        ),
        r"of version 8 of Oban's migrations",
    ),
    "no column": ((*OBAN["oban-14"], "ALTER TABLE oban_jobs DROP meta"), "it has no column meta"),
    "no columns": (("CREATE TABLE oban_jobs (id bigint)",), "it has no column state, queue, worker"),
    "no comment": (
        (*OBAN["oban-14"], "COMMENT ON TABLE oban_jobs IS NULL", "ALTER TABLE oban_jobs DROP tags"),
        "tags",
    ),
    "type": (
        (
            *OBAN["oban-14"],
            "DROP INDEX oban_jobs_meta_index; ALTER TABLE oban_jobs ALTER meta DROP DEFAULT, ALTER meta TYPE text",
        ),
        "expected its column meta to be jsonb, got: text",
    ),
    "moments of seconds": (
        (*OBAN["oban-14"], "ALTER TABLE oban_jobs ALTER attempted_at TYPE timestamp(0)"),
        r"expected its column attempted_at to be timestamp without time zone, got: timestamp\(0\)",
    ),
    "moments with a zone": (
        (
            *OBAN["oban-14"],
            "ALTER TABLE oban_jobs ALTER scheduled_at DROP DEFAULT, ALTER scheduled_at TYPE timestamptz",
        ),
        "expected its column scheduled_at to be timestamp without time zone, got: timestamp with time zone",
    ),
    "no such state": (
        (*(text.replace(", 'cancelled')", ")") for text in OBAN["oban-12"]),),
        "its states lack cancelled",
    ),
    "state as text": (
        (
            "CREATE TYPE oban_job_state AS ENUM ('available')",
            *(text.replace("state oban_job_state", "state text") for text in OBAN["oban-12"][1:]),
        ),
        "expected its column state to be enum, got: text",
    ),
}


@pytest.mark.parametrize(("statements", "said"), UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("prefix", [None, "private"])
async def test_what_cannot_be_used_is_refused_with_the_reason_and_left_as_it_is(
    postgres: PostgresStore, statements: Sequence[str], said: str, prefix: str | None
) -> None:
    existing = await existing_in(postgres, statements, prefix)
    shape, tables = await existing.shape(), await existing.tables()

    status = await existing.status()
    assert (status.foreign, status.usable) == (True, False)
    with pytest.raises(SchemaError, match=f"that Staffa did not make, and cannot use: .*{said}"):
        status.verify()
    for steps in (existing.migrations.up(), existing.migrations.down()):
        with pytest.raises(SchemaError, match=said):
            await postgres.run(steps)

    assert (await existing.shape(), await existing.tables()) == (shape, tables)


async def test_a_table_in_a_schema_that_is_not_ours_is_nobodys_business(postgres: PostgresStore) -> None:
    theirs = await existing_in(postgres, OBAN["oban-14"], "theirs")
    postgres.engine = PostgresEngine()

    await postgres.run(postgres.engine.migrations.up())

    assert (await postgres.run(postgres.engine.migrations.status())).current
    assert not (await postgres.run(postgres.engine.migrations.status())).adopted
    assert await theirs.tables() == {"oban_jobs", "oban_peers"}


async def test_the_claim_of_a_job_without_attempted_by_never_matches_an_ack(postgres: PostgresStore) -> None:
    """The port's column is an empty list where Oban's is NULL."""
    await (await existing_in(postgres, TABLES["port-text-tags"])).up()
    id = await postgres.plant(state="executing", attempt=1, attempted_at=PAST)

    lost = await postgres.producer.ack(
        Ack(id, PAST, "fail", "retryable", 1.0, entry(1, "no")), Ack(id, PAST, "complete")
    )

    assert [one.state for one in lost] == ["executing", "executing"]
