"""The tables on MySQL and MariaDB.

Compared text has a binary collation that does not pad: with the servers' defaults 'Mail' = 'mail' and
'a' = 'a '. There are no partial indexes, so each index of `oban_jobs` begins with what keeps its readers
apart, nearly always the state; InnoDB ends every one of them with the id by itself.

A statement that makes a table commits at once here, and a step can break off half way. So the table of the
jobs, whose presence tells whether a database is in use, comes last and whole, with its indexes, and what
comes before it may be there already. It is the first to go as well.
"""

from staffa.migrations import Migration

__all__ = ["MIGRATIONS"]

NOW = "(utc_timestamp(6))"
TABLE = "ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4 COLLATE = {collation}"

OTHERS = (
    # Leadership: one lease per instance name.
    f"""
CREATE TABLE IF NOT EXISTS {{peers}} (
    name varchar(127) NOT NULL PRIMARY KEY,
    node varchar(255) NOT NULL,
    started_at datetime(6) NOT NULL,
    expires_at datetime(6) NOT NULL
) {TABLE}
""",
    # One row per running queue of a node, refreshed by its heartbeat. No index on updated_at: the table is
    # a few pages, and without one a heartbeat touches no index but the primary one.
    f"""
CREATE TABLE IF NOT EXISTS {{producers}} (
    uuid varchar(127) NOT NULL PRIMARY KEY,
    name varchar(127) NOT NULL,
    node varchar(255) NOT NULL,
    queue varchar(127) NOT NULL,
    meta json NOT NULL DEFAULT ('{{}}'),
    started_at datetime(6) NOT NULL,
    updated_at datetime(6) NOT NULL
) {TABLE}
""",
    # Messages between processes.
    f"""
CREATE TABLE IF NOT EXISTS {{messages}} (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    channel varchar(127) NOT NULL,
    payload longtext NOT NULL,
    inserted_at datetime(6) NOT NULL DEFAULT {NOW}
) {TABLE}
""",
    # Pauses and limits that shall outlive a restart.
    f"""
CREATE TABLE IF NOT EXISTS {{queues}} (
    name varchar(127) NOT NULL,
    queue varchar(127) NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    queue_limit integer NULL,
    updated_at datetime(6) NOT NULL DEFAULT {NOW},
    PRIMARY KEY (name, queue)
) {TABLE}
""",
    # Periodic jobs that were added at run time, and the minutes for which each has run.
    f"""
CREATE TABLE IF NOT EXISTS {{crons}} (
    name varchar(127) NOT NULL PRIMARY KEY,
    expression text NOT NULL,
    worker varchar(127) NOT NULL,
    args json NOT NULL DEFAULT ('{{}}'),
    options json NOT NULL DEFAULT ('{{}}'),
    paused boolean NOT NULL DEFAULT false,
    inserted_at datetime(6) NOT NULL DEFAULT {NOW},
    updated_at datetime(6) NOT NULL DEFAULT {NOW}
) {TABLE}
""",
    f"""
CREATE TABLE IF NOT EXISTS {{cron_runs}} (
    name varchar(127) NOT NULL,
    minute datetime(6) NOT NULL,
    job_id bigint NULL,
    inserted_at datetime(6) NOT NULL DEFAULT {NOW},
    PRIMARY KEY (name, minute)
) {TABLE}
""",
    # What a transaction locks in place of a unique key: the key's hash picks the slot.
    f"""
CREATE TABLE IF NOT EXISTS {{locks}} (
    slot smallint unsigned NOT NULL PRIMARY KEY
) {TABLE}
""",
    # 1,024 slots as 32 times 32: both servers stop a recursion at about a thousand rounds.
    """
INSERT IGNORE INTO {locks} (slot)
WITH RECURSIVE digits (digit) AS (
    SELECT 0 UNION ALL SELECT digit + 1 FROM digits WHERE digit < 31
)
SELECT high.digit * 32 + low.digit FROM digits AS high CROSS JOIN digits AS low
""",
    f"""
CREATE TABLE IF NOT EXISTS {{migrations}} (
    version integer NOT NULL PRIMARY KEY,
    name varchar(127) NOT NULL,
    applied_at datetime(6) NOT NULL DEFAULT {NOW}
) {TABLE}
""",
)

# The indexes, in order: what a claim walks, which also finds the running jobs, all or a queue's, among which
# a producer's are picked out; what the stager looks for, and the pruner; what makes two jobs the same.
JOBS = f"""
CREATE TABLE {{jobs}} (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    state ENUM ('suspended', 'available', 'scheduled', 'executing', 'retryable', 'completed', 'cancelled', 'discarded')
        NOT NULL DEFAULT 'available',
    queue varchar(127) NOT NULL DEFAULT 'default',
    worker varchar(127) NOT NULL,
    args json NOT NULL DEFAULT ('{{}}'),
    meta json NOT NULL DEFAULT ('{{}}'),
    tags json NOT NULL DEFAULT ('[]'),
    attempted_by json NOT NULL DEFAULT ('[]'),
    errors json NOT NULL DEFAULT ('[]'),
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 20,
    priority integer NOT NULL DEFAULT 0,
    inserted_at datetime(6) NOT NULL DEFAULT {NOW},
    scheduled_at datetime(6) NOT NULL DEFAULT {NOW},
    attempted_at datetime(6) NULL,
    cancelled_at datetime(6) NULL,
    completed_at datetime(6) NULL,
    discarded_at datetime(6) NULL,
    unique_key binary(8) NULL,
    CONSTRAINT attempt_range CHECK (attempt BETWEEN 0 AND max_attempts),
    CONSTRAINT non_negative_priority CHECK (priority >= 0),
    CONSTRAINT positive_max_attempts CHECK (max_attempts > 0),
    CONSTRAINT queue_length CHECK (char_length(queue) > 0 AND char_length(queue) < 128),
    CONSTRAINT worker_length CHECK (char_length(worker) > 0 AND char_length(worker) < 128),
    INDEX oban_jobs_claim (state, queue, priority, scheduled_at, id),
    INDEX oban_jobs_due (state, scheduled_at),
    INDEX oban_jobs_unique (unique_key, state, inserted_at)
) {TABLE}
"""

MIGRATIONS = (
    Migration(
        version=1,
        name="initial",
        up=(*OTHERS, JOBS),
        down=tuple(
            f"DROP TABLE IF EXISTS {{{table}}}"
            for table in (
                *("jobs", "locks", "cron_runs", "crons", "queues", "messages", "producers", "peers"),
                "migrations",
            )
        ),
    ),
)
