"""Tables as Oban for Elixir and its Python port make them, for the tests that take them into use."""

from collections.abc import Mapping, Sequence

__all__ = ["OBAN", "OLD_OBAN", "PORT"]

NOW = "timezone('UTC', now())"
STATES = ("available", "scheduled", "executing", "retryable", "completed", "discarded", "cancelled")
LATER_STATES = ("available", "suspended", *STATES[1:])

PEERS = """
CREATE UNLOGGED TABLE oban_peers (
    name text PRIMARY KEY,
    node text NOT NULL,
    started_at timestamp without time zone NOT NULL,
    expires_at timestamp without time zone NOT NULL
)
"""

NOTIFY = (
    """
CREATE FUNCTION oban_jobs_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state = 'available' THEN
        PERFORM pg_notify(TG_TABLE_SCHEMA || '.oban_insert', json_build_object('queue', NEW.queue)::text);
    END IF;
    RETURN NULL;
END $$
""",
    "CREATE TRIGGER oban_notify AFTER INSERT ON oban_jobs FOR EACH ROW EXECUTE FUNCTION oban_jobs_notify()",
)


def enum(states: Sequence[str]) -> str:
    """The type of `state`."""
    return f"CREATE TYPE oban_job_state AS ENUM ({', '.join(repr(state) for state in states)})"


def oban(version: int) -> Sequence[str]:
    """Oban's tables after its migration of that number, on a database that came there step by step."""
    table = f"""
CREATE TABLE oban_jobs (
    id bigserial PRIMARY KEY,
    state oban_job_state NOT NULL DEFAULT 'available',
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
    tags {"text" if version >= 14 else "character varying(255)"}[] DEFAULT ARRAY[]::text[],
    meta jsonb DEFAULT '{{}}',
    cancelled_at timestamp without time zone,
    CONSTRAINT attempt_range CHECK (attempt BETWEEN 0 AND max_attempts),
    CONSTRAINT positive_max_attempts CHECK (max_attempts > 0),
    CONSTRAINT queue_length CHECK (char_length(queue) > 0 AND char_length(queue) < 128),
    CONSTRAINT worker_length CHECK (char_length(worker) > 0 AND char_length(worker) < 128)
)
"""
    made = [enum(LATER_STATES if version >= 14 else STATES), table]
    made += [
        "CREATE INDEX oban_jobs_args_index ON oban_jobs USING gin (args)",
        "CREATE INDEX oban_jobs_meta_index ON oban_jobs USING gin (meta)",
        "CREATE INDEX oban_jobs_state_queue_priority_scheduled_at_id_index "
        "ON oban_jobs (state, queue, priority, scheduled_at, id)",
    ]
    if version >= 11:
        made.append(PEERS)
    if version >= 12:
        made.append(
            "ALTER TABLE oban_jobs ADD CONSTRAINT non_negative_priority CHECK (priority >= 0) NOT VALID"
        )
    else:
        made.append("ALTER TABLE oban_jobs ADD CONSTRAINT priority_range CHECK (priority BETWEEN 0 AND 3)")
        made += NOTIFY
    if version >= 13:
        made.append("CREATE INDEX oban_jobs_state_cancelled_at_index ON oban_jobs (state, cancelled_at)")
        made.append("CREATE INDEX oban_jobs_state_discarded_at_index ON oban_jobs (state, discarded_at)")
    return [*made, f"COMMENT ON TABLE oban_jobs IS '{version}'"]


def port(tags: str) -> Sequence[str]:
    """The Python port's tables."""
    table = f"""
CREATE TABLE oban_jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state oban_job_state NOT NULL DEFAULT 'available',
    queue text NOT NULL DEFAULT 'default',
    worker text NOT NULL,
    attempt smallint NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL DEFAULT 20,
    priority smallint NOT NULL DEFAULT 0,
    args jsonb NOT NULL DEFAULT '{{}}',
    meta jsonb NOT NULL DEFAULT '{{}}',
    tags {tags},
    errors jsonb NOT NULL DEFAULT '[]',
    attempted_by text[] NOT NULL DEFAULT ARRAY[]::text[],
    inserted_at timestamp without time zone NOT NULL DEFAULT {NOW},
    scheduled_at timestamp without time zone NOT NULL DEFAULT {NOW},
    attempted_at timestamp without time zone,
    cancelled_at timestamp without time zone,
    completed_at timestamp without time zone,
    discarded_at timestamp without time zone
)
"""
    ended = [
        f"CREATE INDEX oban_jobs_{state}_at_index ON oban_jobs ({state}_at) WHERE state = '{state}'"
        for state in ("completed", "cancelled", "discarded")
    ]
    leaders = """
CREATE UNLOGGED TABLE oban_leaders (
    name text PRIMARY KEY,
    node text NOT NULL,
    elected_at timestamp without time zone NOT NULL,
    expires_at timestamp without time zone NOT NULL
)
"""
    producers = """
CREATE UNLOGGED TABLE oban_producers (
    uuid uuid PRIMARY KEY,
    name text NOT NULL,
    node text NOT NULL,
    queue text NOT NULL,
    meta jsonb NOT NULL DEFAULT '{}',
    started_at timestamp without time zone NOT NULL,
    updated_at timestamp without time zone NOT NULL
)
"""
    return [
        enum(LATER_STATES),
        table,
        "CREATE INDEX oban_jobs_state_queue_priority_scheduled_at_id_index "
        "ON oban_jobs (state, queue, priority, scheduled_at, id)",
        "CREATE INDEX oban_jobs_staging_index ON oban_jobs (scheduled_at, id) WHERE state IN ('scheduled', 'retryable')",
        "CREATE INDEX oban_jobs_meta_index ON oban_jobs USING gin (meta)",
        *ended,
        leaders,
        producers,
        "COMMENT ON TABLE oban_jobs IS '1'",
    ]


OBAN: Mapping[str, Sequence[str]] = {f"oban-{version}": oban(version) for version in (11, 12, 13, 14)}
OLD_OBAN = oban(10)
PORT: Mapping[str, Sequence[str]] = {
    "port-jsonb-tags": port("jsonb NOT NULL DEFAULT '[]'"),
    "port-text-tags": port("text[] NOT NULL DEFAULT ARRAY[]::text[]"),
}
