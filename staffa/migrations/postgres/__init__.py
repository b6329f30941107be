"""The tables on PostgreSQL.

`oban_jobs` and `oban_peers` are those of Oban's version 14, column for column, so nodes and tools of both
can share them; its comment is Oban's version number, ours is in `staffa_migrations`. The indexes are our
own and partial: each row stands in one of them, plus the unique one if it is unique. Oban's two GIN indexes
are left out, since every update would pay for them.
"""

from dataclasses import replace

from staffa.migrations import Adoption, Index, Migration
from staffa.migrations.postgres.existing import look

__all__ = ["ADOPTION", "ARGS_INDEX", "MIGRATIONS"]

NOW = "timezone('UTC', now())"

STATE = """
CREATE TYPE {job_state} AS ENUM
    ('available', 'suspended', 'scheduled', 'executing', 'retryable', 'completed', 'discarded', 'cancelled')
"""

JOBS = f"""
CREATE TABLE {{jobs}} (
    id bigserial PRIMARY KEY,
    state {{job_state}} NOT NULL DEFAULT 'available',
    queue text NOT NULL DEFAULT 'default',
    worker text NOT NULL,
    args jsonb NOT NULL DEFAULT '{{}}',
    errors jsonb[] NOT NULL DEFAULT ARRAY[]::jsonb[],
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 20,
    inserted_at timestamp without time zone NOT NULL DEFAULT {NOW},
    scheduled_at timestamp without time zone NOT NULL DEFAULT {NOW},
    attempted_at timestamp without time zone,
    completed_at timestamp without time zone,
    attempted_by text[],
    discarded_at timestamp without time zone,
    priority integer NOT NULL DEFAULT 0,
    tags text[] DEFAULT ARRAY[]::text[],
    meta jsonb DEFAULT '{{}}',
    cancelled_at timestamp without time zone,
    CONSTRAINT worker_length CHECK (char_length(worker) > 0 AND char_length(worker) < 128),
    CONSTRAINT queue_length CHECK (char_length(queue) > 0 AND char_length(queue) < 128),
    CONSTRAINT positive_max_attempts CHECK (max_attempts > 0),
    CONSTRAINT attempt_range CHECK (attempt BETWEEN 0 AND max_attempts)
)
"""

# NOT VALID as in Oban's table, which can only be said beside the CREATE: every new row is checked all the same.
PRIORITY = "ALTER TABLE {jobs} ADD CONSTRAINT non_negative_priority CHECK (priority >= 0) NOT VALID"

# Oban reads this to know how far its own migrations have come.
OBAN_VERSION = "COMMENT ON TABLE {jobs} IS '14'"

INDEXES = (
    # What a claim walks, in its order. Oban's serves as well, though every change of state pays for it.
    Index(
        "oban_jobs_available",
        "ON {jobs} (queue, priority, scheduled_at, id) WHERE state = 'available'",
        like=["oban_jobs_state_queue_priority_scheduled_at_id_index"],
    ),
    # What the stager looks for.
    Index(
        "oban_jobs_due",
        "ON {jobs} (scheduled_at, id) WHERE state IN ('scheduled', 'retryable')",
        like=["oban_jobs_staging_index"],
    ),
    # A producer's running jobs, by its uuid: for reconciliation and rescue.
    Index("oban_jobs_executing", "ON {jobs} ((attempted_by[2])) WHERE state = 'executing'"),
    # What the pruner looks for.
    Index(
        "oban_jobs_completed",
        "ON {jobs} (completed_at) WHERE state = 'completed'",
        like=["oban_jobs_completed_at_index"],
    ),
    Index(
        "oban_jobs_discarded",
        "ON {jobs} (discarded_at) WHERE state = 'discarded'",
        like=["oban_jobs_discarded_at_index", "oban_jobs_state_discarded_at_index"],
    ),
    Index(
        "oban_jobs_cancelled",
        "ON {jobs} (cancelled_at) WHERE state = 'cancelled'",
        like=["oban_jobs_cancelled_at_index", "oban_jobs_state_cancelled_at_index"],
    ),
    # What makes two jobs the same; jobs that are not unique are not in it.
    Index("oban_jobs_unique", "ON {jobs} ((meta ->> 'unique'), state, inserted_at) WHERE meta ? 'unique'"),
)

# Oban's, for those who look for jobs by their arguments (`args @> …`). Every change of a job pays for it, so it is made
# only when somebody asks for it.
ARGS_INDEX = Index(
    "oban_jobs_args_index",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS oban_jobs_args_index ON {jobs} USING gin (args)",
)

OTHERS = (
    # Leadership: one lease per instance name. A crash may empty it, an election fills it again.
    """
CREATE UNLOGGED TABLE {peers} (
    name text PRIMARY KEY,
    node text NOT NULL,
    started_at timestamp without time zone NOT NULL,
    expires_at timestamp without time zone NOT NULL
)
""",
    # One row per running queue of a node, refreshed by its heartbeat. Not unlogged: emptied by a crash of
    # the server, it would make every running job look orphaned. The uuid is text, as in attempted_by. No
    # index on updated_at: the table is a few pages, and without one a heartbeat touches no index at all.
    """
CREATE TABLE {producers} (
    uuid text PRIMARY KEY,
    name text NOT NULL,
    node text NOT NULL,
    queue text NOT NULL,
    meta jsonb NOT NULL DEFAULT '{}',
    started_at timestamp without time zone NOT NULL,
    updated_at timestamp without time zone NOT NULL
)
""",
    # Messages between processes, for those that cannot listen.
    f"""
CREATE TABLE {{messages}} (
    id bigserial PRIMARY KEY,
    channel text NOT NULL,
    payload text NOT NULL,
    inserted_at timestamp without time zone NOT NULL DEFAULT {NOW}
)
""",
    # Pauses and limits that shall outlive a restart.
    f"""
CREATE TABLE {{queues}} (
    name text NOT NULL,
    queue text NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    queue_limit integer,
    updated_at timestamp without time zone NOT NULL DEFAULT {NOW},
    PRIMARY KEY (name, queue)
)
""",
    # Periodic jobs that were added at run time, and the minutes for which each has run.
    f"""
CREATE TABLE {{crons}} (
    name text PRIMARY KEY,
    expression text NOT NULL,
    worker text NOT NULL,
    args jsonb NOT NULL DEFAULT '{{}}',
    options jsonb NOT NULL DEFAULT '{{}}',
    paused boolean NOT NULL DEFAULT false,
    inserted_at timestamp without time zone NOT NULL DEFAULT {NOW},
    updated_at timestamp without time zone NOT NULL DEFAULT {NOW}
)
""",
    f"""
CREATE TABLE {{cron_runs}} (
    name text NOT NULL,
    minute timestamp without time zone NOT NULL,
    job_id bigint,
    inserted_at timestamp without time zone NOT NULL DEFAULT {NOW},
    PRIMARY KEY (name, minute)
)
""",
    f"""
CREATE TABLE {{migrations}} (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamp without time zone NOT NULL DEFAULT {NOW}
)
""",
)

OURS = ("migrations", "cron_runs", "crons", "queues", "messages", "producers")

MIGRATIONS = (
    Migration(
        version=1,
        name="initial",
        up=(
            *("{create_schema}", STATE, JOBS, PRIORITY, OBAN_VERSION),
            *(f"CREATE INDEX {index.name} {index.text}" for index in INDEXES),
            *OTHERS,
        ),
        # The schema stays: it may hold tables of others, and may have been there before.
        down=(*(f"DROP TABLE {{{table}}}" for table in (*OURS, "peers", "jobs")), "DROP TYPE {job_state}"),
    ),
)

ADOPTION = Adoption(
    look=look,
    beside=tuple(text.replace("TABLE {", "TABLE IF NOT EXISTS {") for text in OTHERS),
    # Granted when nobody makes an index, and without a snapshot, which that would wait for.
    wait="LOCK TABLE {jobs} IN SHARE UPDATE EXCLUSIVE MODE",
    indexes_there="""
SELECT c.relname, i.indisvalid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = {regclass jobs}
""",
    indexes=tuple(
        replace(index, text=f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {index.name} {index.text}")
        for index in INDEXES
    ),
    drop_index="DROP INDEX CONCURRENTLY IF EXISTS {table %(name)s}",
    # Oban's own tables stay, with the jobs in them.
    down=(
        *(f"DROP INDEX IF EXISTS {{table {index.name}}}" for index in INDEXES),
        *(f"DROP TABLE {{{table}}}" for table in OURS),
    ),
)
