"""The tables on SQLite.

Moments are text of one fixed form (`staffa/clock.py`), lists and objects are JSON text. The indexes
are partial: each row stands in one of them at most, so a job's life costs two entries per change of
state, and finished rows never slow a claim down, however many there are. There are no CHECKs, unlike on
the servers: they would cost a third of every insert, and a job is checked when it is built.
"""

from staffa.migrations import Migration

__all__ = ["MIGRATIONS"]

NOW = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"

JOBS = f"""
CREATE TABLE {{jobs}} (
    id integer PRIMARY KEY AUTOINCREMENT,
    state text NOT NULL DEFAULT 'available',
    queue text NOT NULL DEFAULT 'default',
    worker text NOT NULL,
    args text NOT NULL DEFAULT '{{}}',
    meta text NOT NULL DEFAULT '{{}}',
    tags text NOT NULL DEFAULT '[]',
    errors text NOT NULL DEFAULT '[]',
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 20,
    priority integer NOT NULL DEFAULT 0,
    attempted_by text,
    unique_key blob,
    inserted_at text NOT NULL DEFAULT {NOW},
    scheduled_at text NOT NULL DEFAULT {NOW},
    attempted_at text,
    completed_at text,
    discarded_at text,
    cancelled_at text
)
"""

INDEXES = (
    # What a claim walks, in its order.
    "CREATE INDEX oban_jobs_available ON {jobs} (queue, priority, scheduled_at) WHERE state = 'available'",
    # What the stager looks for.
    "CREATE INDEX oban_jobs_due ON {jobs} (scheduled_at) WHERE state IN ('scheduled', 'retryable')",
    # What runs now, for reconciliation and rescue: so few rows that whose they are need not be in the index.
    "CREATE INDEX oban_jobs_executing ON {jobs} (state) WHERE state = 'executing'",
    # What the pruner looks for.
    "CREATE INDEX oban_jobs_completed ON {jobs} (completed_at) WHERE state = 'completed'",
    "CREATE INDEX oban_jobs_discarded ON {jobs} (discarded_at) WHERE state = 'discarded'",
    "CREATE INDEX oban_jobs_cancelled ON {jobs} (cancelled_at) WHERE state = 'cancelled'",
    # What makes two jobs the same; jobs that are not unique are not in it.
    "CREATE INDEX oban_jobs_unique ON {jobs} (unique_key, state, inserted_at) WHERE unique_key IS NOT NULL",
)

OTHERS = (
    # Leadership: one lease per instance name.
    """
CREATE TABLE {peers} (
    name text PRIMARY KEY,
    node text NOT NULL,
    started_at text NOT NULL,
    expires_at text NOT NULL
)
""",
    # One row per running queue of a node, refreshed by its heartbeat.
    """
CREATE TABLE {producers} (
    uuid text PRIMARY KEY,
    name text NOT NULL,
    node text NOT NULL,
    queue text NOT NULL,
    meta text NOT NULL DEFAULT '{}',
    started_at text NOT NULL,
    updated_at text NOT NULL
)
""",
    "CREATE INDEX staffa_producers_updated_at ON {producers} (updated_at)",
    # Messages between processes.
    f"""
CREATE TABLE {{messages}} (
    id integer PRIMARY KEY AUTOINCREMENT,
    channel text NOT NULL,
    payload text NOT NULL,
    inserted_at text NOT NULL DEFAULT {NOW}
)
""",
    # Pauses and limits that shall outlive a restart.
    f"""
CREATE TABLE {{queues}} (
    name text NOT NULL,
    queue text NOT NULL,
    paused integer NOT NULL DEFAULT 0,
    queue_limit integer,
    updated_at text NOT NULL DEFAULT {NOW},
    PRIMARY KEY (name, queue)
)
""",
    # Periodic jobs that were added at run time, and the minutes for which each has run.
    f"""
CREATE TABLE {{crons}} (
    name text PRIMARY KEY,
    expression text NOT NULL,
    worker text NOT NULL,
    args text NOT NULL DEFAULT '{{}}',
    options text NOT NULL DEFAULT '{{}}',
    paused integer NOT NULL DEFAULT 0,
    inserted_at text NOT NULL DEFAULT {NOW},
    updated_at text NOT NULL DEFAULT {NOW}
)
""",
    f"""
CREATE TABLE {{cron_runs}} (
    name text NOT NULL,
    minute text NOT NULL,
    job_id integer,
    inserted_at text NOT NULL DEFAULT {NOW},
    PRIMARY KEY (name, minute)
)
""",
    f"""
CREATE TABLE {{migrations}} (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at text NOT NULL DEFAULT {NOW}
)
""",
)

MIGRATIONS = (
    Migration(
        version=1,
        name="initial",
        up=(JOBS, *INDEXES, *OTHERS),
        down=tuple(
            f"DROP TABLE {{{table}}}"
            for table in (
                "migrations",
                "cron_runs",
                "crons",
                "queues",
                "messages",
                "producers",
                "peers",
                "jobs",
            )
        ),
    ),
)
