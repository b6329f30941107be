"""Every statement, named, in portable SQL.

`{spellings}` are filled in by the dialect, `:names` are parameters. JSON, lists and moments come and go
as text. `:now` is None, or the moment to take for the present one.
"""

__all__: list[str] = []

# The columns of a stored job, in the order of `jobs.COLUMNS`.
JOB_COLUMNS = """id, {text state}, queue, worker, {text args}, {text meta}, {list_text tags}, {errors_text errors},
    attempt, max_attempts, priority, {list_text attempted_by}, {moment_text inserted_at}, {moment_text scheduled_at},
    {moment_text attempted_at}, {moment_text completed_at}, {moment_text discarded_at}, {moment_text cancelled_at}"""

# What a worker needs of a claimed job, in the order of `RunningJob.claimed`, and the state that it got.
CLAIMED_COLUMNS = """id, worker, {text args}, {text meta}, {list_text tags}, {errors_text errors}, attempt, max_attempts,
    priority, {moment_text inserted_at}, {moment_text scheduled_at}, {moment_text attempted_at}, {text state}"""

# One new job. A relative schedule becomes a moment here, by the database's clock.
INSERT_JOB = """
INSERT INTO {jobs} (state, queue, worker, args, meta, tags, max_attempts, priority, inserted_at, scheduled_at)
VALUES ({state :state}, :queue, :worker, {json :args}, {json :meta}, {tag_list :tags}, :max_attempts, :priority,
    {now}, coalesce({after :schedule_in}, {moment :scheduled_at}, {now}))
RETURNING id, {moment_text inserted_at}, {moment_text scheduled_at}
"""

# The claim's window. Rows whose attempts are used up (a foreign program's work) are in it, and leave it as discarded:
# they can neither run nor stand in the way of those behind them. Where others write at the same time, a claim locks
# its producer's row, and claims nothing without one: a claim that hung in the database until its node was buried must
# not come true afterwards, under a producer that nobody looks for any more.
_CLAIM = """
UPDATE {jobs}
SET state = CASE WHEN attempt < max_attempts THEN {state 'executing'} ELSE {state 'discarded'} END,
    discarded_at = CASE WHEN attempt < max_attempts THEN discarded_at ELSE {now} END,
    attempted_at = {now},
    attempted_by = {claimed_by :node :uuid},
    attempt = CASE WHEN attempt < max_attempts THEN attempt + 1 ELSE attempt END
WHERE id {any_of}
    SELECT id FROM {jobs}
    WHERE state = 'available' AND queue = :queue%s
    ORDER BY priority, scheduled_at, id
    LIMIT :demand
    {skip_locked}
{end_of}{while_alive :uuid}
RETURNING """

CLAIM_JOBS = _CLAIM % "" + CLAIMED_COLUMNS

# The same, leaving workers that this node cannot resolve to nodes that can.
CLAIM_KNOWN_JOBS = _CLAIM % " AND worker NOT IN (SELECT value FROM {each :unknown w})" + CLAIMED_COLUMNS

# A batch in which every job completed, the usual case: tokens by id, as one JSON object.
# The guards are opaque to the planner, so that rows are found by their ids and nothing else.
COMPLETE_JOBS = """
UPDATE {jobs}
SET state = {state 'completed'}, completed_at = {now}
FROM {each_pair :acks s}
WHERE {jobs}.id = {number s.key}
    AND {opaque attempted_at} = {moment s.value}
    AND {opaque state} = 'executing'
    AND {opaque attempted_by} = {claimed_by :node :uuid}
RETURNING id
"""

# Outcomes of every kind; where they come from, and how a field of one is spelled, is left open.
_ACK = """
UPDATE {jobs}
SET state = {state %(state)s},
    scheduled_at = coalesce({after %(delay)s}, scheduled_at),
    completed_at = CASE %(state)s WHEN 'completed' THEN {now} ELSE completed_at END,
    discarded_at = CASE %(state)s WHEN 'discarded' THEN {now} ELSE discarded_at END,
    cancelled_at = CASE %(state)s WHEN 'cancelled' THEN {now} ELSE cancelled_at END,
    errors = CASE WHEN %(error)s IS NULL THEN errors ELSE {errors_push %(error)s} END,
    meta = CASE %(kind)s WHEN 'snooze' THEN {bump meta snoozed} ELSE meta END,
    attempt = CASE WHEN %(kind)s IN ('snooze', 'release') THEN {greatest (attempt - 1) 0} ELSE attempt END
FROM %(acks)s
WHERE {jobs}.id = %(id)s
    AND {opaque attempted_at} = {moment %(token)s}
    AND {opaque state} = 'executing'
    AND {opaque attempted_by} = {claimed_by :node :uuid}
RETURNING id
"""

_ACK_FIELDS = ("token", "kind", "state", "delay", "error")

# As a JSON list.
ACK_JOBS = _ACK % {
    "acks": "{each_object :acks s}",
    "id": "{number {field s.value id}}",
    **{name: f"{{field s.value {name}}}" for name in _ACK_FIELDS},
}

# As arrays, where there are such: their length is estimated as ten, so the planner looks every row up by its id.
ACK_JOBS_BY_ARRAYS = _ACK % {
    "acks": """unnest(:ids::bigint[], :tokens::text[], :kinds::text[], :states::text[], :delays::float8[], :errors::text[])
    AS s(ack_id, ack_token, ack_kind, ack_state, ack_delay, ack_error)""",
    "id": "ack_id",
    **{name: f"ack_{name}" for name in _ACK_FIELDS},
}

# Where jobs stand that we hold, or whose acks were refused.
HELD_STATES = """
SELECT id, {text state}, {moment_text attempted_at}, {list_text attempted_by} FROM {jobs}
WHERE id {any_of}SELECT {number value} FROM {each :ids i}{end_of}
"""

# Is anything due, and which of our queues have something to claim? One look, for the common case of no and none.
# The first by an index's order, compared outside: a planner that is asked whether any exists expects to meet one
# soon, reads the table from its beginning, and meets none.
PENDING = """
SELECT NULL AS queue
WHERE (SELECT scheduled_at FROM {jobs} WHERE state IN ('scheduled', 'retryable') ORDER BY scheduled_at LIMIT 1) <= {now}
UNION ALL
SELECT q.value FROM {each :queues q}
WHERE (SELECT id FROM {jobs} WHERE state = 'available' AND queue = q.value
    ORDER BY priority, scheduled_at, id LIMIT 1) IS NOT NULL
"""

STAGE_JOBS = """
UPDATE {jobs}
SET state = {state 'available'}
WHERE id {any_of}
    SELECT id FROM {jobs}
    WHERE state IN ('scheduled', 'retryable') AND scheduled_at <= {now}
    ORDER BY scheduled_at
    LIMIT :limit
    {skip_locked}
{end_of}
RETURNING queue
"""

HEARTBEAT = """
INSERT INTO {producers} (uuid, name, node, queue, meta, started_at, updated_at)
SELECT {field p.value uuid}, {field p.value name}, {field p.value node}, {field p.value queue},
    {json {field p.value meta}}, {now}, {now}
FROM {each_object :beats p}
WHERE true
{upsert uuid} meta = {given meta}, updated_at = {clock}
"""

# What runs under our producers, and the moment by the database's clock. One pass over what executes, whoever it
# belongs to, however many we are: a join would look at all of it once for each producer.
EXECUTING = """
SELECT id, {moment_text attempted_at}, {claimant} FROM {jobs}
WHERE state = 'executing'
    AND {claim} IN (SELECT {claim_of {field p.value node} {field p.value uuid}} FROM {each_object :beats p})
UNION ALL
SELECT NULL, {moment_text {now}}, NULL
"""

PRODUCERS = """
SELECT uuid, name, node, queue, {text meta}, {moment_text started_at}, {moment_text updated_at},
    updated_at >= {before :stale_after}
FROM {producers}
ORDER BY name, node, queue, uuid
"""

# A producer's row, for those who will delete it: whoever claims under it at this moment has it locked.
LOCK_PRODUCER = """
SELECT uuid FROM {producers} WHERE uuid = :uuid {skip_locked}
"""

LOCK_STALE_PRODUCER = """
SELECT uuid FROM {producers} WHERE uuid = :uuid AND updated_at < {before :stale_after} {skip_locked}
"""

RETIRE_PRODUCER = """
DELETE FROM {producers}
WHERE uuid = :uuid
    AND NOT EXISTS (SELECT 1 FROM {jobs} WHERE state = 'executing' AND {is_claimed_by :node :uuid})
"""

# Only a row that is there and stale proves death, and only to one who has just beaten by the same clock: when it
# jumps, every row looks stale at once.
STALE_PRODUCERS = """
SELECT uuid, node FROM {producers}
WHERE updated_at < {before :stale_after}
    AND ({moment :beaten_at} IS NULL OR {moment :beaten_at} >= {before :longest_gap})
ORDER BY updated_at
LIMIT 100
"""

RESCUE_JOBS = """
UPDATE {jobs}
SET state = CASE WHEN attempt < max_attempts THEN {state 'available'} ELSE {state 'discarded'} END,
    discarded_at = CASE WHEN attempt < max_attempts THEN discarded_at ELSE {now} END,
    errors = CASE WHEN attempt < max_attempts THEN errors ELSE
        {errors_push {failure attempt 'the node died during this attempt, which was the last one'}} END,
    meta = {bump meta rescued}
WHERE id {any_of}
    SELECT id FROM {jobs}
    WHERE state = 'executing' AND {is_claimed_by :node :uuid}
    LIMIT :limit
    {skip_locked}
{end_of} AND EXISTS (SELECT 1 FROM {producers} WHERE uuid = :uuid AND updated_at < {before :stale_after})
RETURNING id, queue, {text state}
"""

BURY_PRODUCER = """
DELETE FROM {producers}
WHERE uuid = :uuid
    AND updated_at < {before :stale_after}
    AND NOT EXISTS (SELECT 1 FROM {jobs} WHERE state = 'executing' AND {is_claimed_by :node :uuid})
"""

# In which states anything is old enough: one look, for the common case of none, by the first as above.
_PRUNABLE = """SELECT '%(state)s' WHERE (
    SELECT %(state)s_at FROM {jobs} WHERE state = '%(state)s' AND %(state)s_at IS NOT NULL
    ORDER BY %(state)s_at LIMIT 1
) < {before :%(state)s}"""

PRUNABLE = "\nUNION ALL ".join(_PRUNABLE % {"state": one} for one in ("completed", "discarded", "cancelled"))

_PRUNE = """
DELETE FROM {jobs}
WHERE id {any_of}
    SELECT id FROM {jobs}
    WHERE state = '%(state)s' AND %(state)s_at < {before :max_age}
    ORDER BY %(state)s_at
    LIMIT :limit
    {skip_locked}
{end_of}
RETURNING id
"""

PRUNE_COMPLETED = _PRUNE % {"state": "completed"}
PRUNE_DISCARDED = _PRUNE % {"state": "discarded"}
PRUNE_CANCELLED = _PRUNE % {"state": "cancelled"}

GET_JOB = f"SELECT {JOB_COLUMNS} FROM {{jobs}} WHERE id = :id"

# A filter that was not said is NULL and lets everything pass.
LIST_JOBS = f"""
SELECT {JOB_COLUMNS} FROM {{jobs}}
WHERE ({{text :states}} IS NULL OR {{text state}} IN (SELECT value FROM {{each :states s}}))
    AND ({{text :queues}} IS NULL OR queue IN (SELECT value FROM {{each :queues q}}))
    AND ({{text :workers}} IS NULL OR worker IN (SELECT value FROM {{each :workers w}}))
ORDER BY id DESC
LIMIT :limit
"""

COUNT_JOBS = "SELECT queue, {text state}, count(*) FROM {jobs} GROUP BY queue, state"

CANCEL_JOB = f"""
UPDATE {{jobs}}
SET state = {{state 'cancelled'}}, cancelled_at = {{now}}
WHERE id = :id AND state NOT IN ('completed', 'discarded', 'cancelled')
RETURNING {JOB_COLUMNS}
"""

RETRY_JOB = f"""
UPDATE {{jobs}}
SET state = {{state 'available'}}, scheduled_at = {{now}}, max_attempts = {{greatest max_attempts (attempt + 1)}},
    completed_at = NULL, discarded_at = NULL, cancelled_at = NULL
WHERE id = :id AND state NOT IN ('available', 'executing')
RETURNING {JOB_COLUMNS}
"""
