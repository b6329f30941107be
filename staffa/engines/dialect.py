"""The handful of spellings in which the databases differ.

`statements.py` says things once, with `{name arguments}` where a spelling differs; rendering replaces
each by an attribute or a method of the dialect. Parameters stay `:name`; JSON, lists and moments
travel as text in both directions, with casts in SQL.
"""

import re
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Literal

__all__ = ["DIALECTS", "Dialect", "MySQLDialect", "SQLiteDialect"]

_SPELLING = re.compile(r"\{(\w+)((?: [^{}]*)?)\}")
_INNERMOST = 10

# The advisory lock of migrations: the bytes of "stff".
_MIGRATIONS = 0x73746666

# Seconds from a moment before all others to 1970.
_LONG_BEFORE = 100_000_000_000


class Dialect:
    """What every dialect can spell, as PostgreSQL spells it; the others override.

    Arguments are SQL expressions; one with spaces stands in brackets.
    """

    name = "postgres"
    quote = '"'
    skip_locked = "FOR UPDATE SKIP LOCKED"
    jobs: str
    producers: str
    peers: str
    queues: str
    messages: str
    crons: str
    cron_runs: str
    migrations: str
    job_state: str
    # What these columns are: tables made by Oban's Python port differ.
    errors_type: Literal["jsonb[]", "jsonb"] = "jsonb[]"
    tags_type: Literal["text[]", "jsonb"] = "text[]"

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = prefix
        self._rendered: dict[str, str] = {}
        for name in ("jobs", "peers"):
            setattr(self, name, self.table(f"oban_{name}"))
        for name in ("producers", "queues", "messages", "crons", "cron_runs", "migrations"):
            setattr(self, name, self.table(f"staffa_{name}"))
        self.job_state = self.table("oban_job_state")

    def table(self, name: str) -> str:
        """A table's name, quoted, under the prefix when there is one."""
        return (
            f"{self.identifier(self.prefix)}.{self.identifier(name)}"
            if self.prefix
            else self.identifier(name)
        )

    def identifier(self, name: str) -> str:
        return f"{self.quote}{name.replace(self.quote, self.quote * 2)}{self.quote}"

    def render(self, template: str) -> str:
        """A template of `statements.py` in this dialect. Spellings may nest; the inner one is replaced first."""
        text = self._rendered.get(template)
        if text is None:
            text = self._rendered[template] = self._render(template)
        return text

    def adapt(self, errors_type: Literal["jsonb[]", "jsonb"], tags_type: Literal["text[]", "jsonb"]) -> None:
        """Spell for a table whose columns are of these types from now on."""
        if (errors_type, tags_type) != (self.errors_type, self.tags_type):
            self.errors_type, self.tags_type = errors_type, tags_type
            self._rendered.clear()

    def _render(self, template: str) -> str:
        for _ in range(_INNERMOST):
            rendered = _SPELLING.sub(self._spell, template)
            if rendered == template:
                return rendered.strip()
            template = rendered
        raise ValueError(f"spellings are nested too deeply in {template!r}")

    def _spell(self, found: re.Match[str]) -> str:
        spelling = getattr(self, found[1])
        if isinstance(spelling, str):
            return spelling
        arguments = _arguments(found[2])
        return str(spelling(*arguments))

    # Spellings.

    # Those that a name without a schema finds, when there is no prefix.
    tables_present = """
SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND CASE WHEN :prefix::text IS NULL THEN pg_table_is_visible(c.oid) ELSE n.nspname = :prefix::text END
"""

    def begin_migration(self) -> Sequence[str]:
        """What keeps two nodes from migrating at once, and a migration from holding everybody else up."""
        key = zlib.crc32(self.jobs.encode()) - 2**31
        return "SET LOCAL lock_timeout = '10s'", f"SELECT pg_advisory_xact_lock({_MIGRATIONS}, {key})"

    def regclass(self, table: str) -> str:
        """A table, as the catalogue knows it; NULL when there is none."""
        name = str(getattr(self, table)).replace("'", "''")
        return f"to_regclass('{name}')"

    @property
    def create_schema(self) -> str:
        """Make the schema of the prefix unless it is there: asked first, for asking needs no right to make one."""
        if not self.prefix:
            return "DO 'BEGIN END'"
        name = self.identifier(self.prefix)
        literal = name.replace("'", "''")
        return (
            f"DO $make$ BEGIN IF to_regnamespace('{literal}') IS NULL "
            f"THEN CREATE SCHEMA IF NOT EXISTS {name}; END IF; END $make$"
        )

    @property
    def now(self) -> str:
        """The database's clock, unless a test said another time."""
        return "coalesce(:now::text::timestamp, timezone('UTC', now()))"

    @property
    def clock(self) -> str:
        """The same, not as it was when the statement began: it may have had to wait."""
        return "coalesce(:now::text::timestamp, timezone('UTC', clock_timestamp()))"

    def while_alive(self, uuid: str) -> str:
        """A condition for claims: the producer's row is there, and stays until the claim is committed."""
        row = f"SELECT uuid FROM {self.producers} WHERE uuid = ({uuid})::text FOR KEY SHARE"
        return f"\n    AND ({row}) IS NOT NULL"

    def after(self, seconds: str) -> str:
        """The moment so many seconds from now."""
        return f"({self.now} + make_interval(secs => ({seconds})::float8))"

    def before(self, seconds: str) -> str:
        """The moment so many seconds ago."""
        return f"({self.now} - make_interval(secs => ({seconds})::float8))"

    def moment(self, value: str) -> str:
        """A moment that came as text."""
        return f"({value})::text::timestamp"

    def text(self, column: str) -> str:
        """A moment, JSON or list as text, in the one form in which it travels."""
        return f"({column})::text"

    def moment_text(self, column: str) -> str:
        return f"to_char({column}, 'YYYY-MM-DD HH24:MI:SS.US')"

    def list_text(self, column: str) -> str:
        """A list of texts (tags, attempted_by) as a JSON list."""
        return f"to_json({column})::text"

    def errors_text(self, column: str) -> str:
        return f"to_json({column})::text"

    def json(self, value: str) -> str:
        """JSON that came as text, as a value to store."""
        return f"({value})::text::jsonb"

    def json_list(self, value: str) -> str:
        """A JSON list of texts that came as text, as a value to store in a list column."""
        return f"ARRAY(SELECT jsonb_array_elements_text(({value})::text::jsonb))"

    def tag_list(self, value: str) -> str:
        """The same for the column of tags."""
        return self.json(value) if self.tags_type == "jsonb" else self.json_list(value)

    def state(self, value: str) -> str:
        return f"({value})::text::{self.job_state}"

    def each(self, value: str, name: str) -> str:
        """The elements of a JSON list that came as text: a table of that name with one column, `value`."""
        return f"jsonb_array_elements_text(({value})::text::jsonb) AS {name}(value)"

    def each_object(self, value: str, name: str) -> str:
        """The same for a list of objects, whose fields `field` picks."""
        return f"jsonb_array_elements(({value})::text::jsonb) AS {name}(value)"

    def each_pair(self, value: str, name: str) -> str:
        """The members of a JSON object that came as text: a table of that name with `key` and `value`."""
        return f"jsonb_each_text(({value})::text::jsonb) AS {name}(key, value)"

    def field(self, value: str, name: str) -> str:
        """A field of a JSON object that came out of `each_object`, as text."""
        return f"({value} ->> '{name}')"

    def number(self, value: str) -> str:
        return f"({value})::bigint"

    def claimed_by(self, node: str, uuid: str) -> str:
        """The value of attempted_by under a claim."""
        return f"ARRAY[({node})::text, ({uuid})::text]"

    claimant = "attempted_by[2]"  # the uuid of the producer that holds the claim
    claim = "attempted_by[2]"  # what a claim is known by

    def claim_of(self, node: str, uuid: str) -> str:
        """What the claims of a producer are known by."""
        return f"({uuid})::text"

    def is_claimed_by(self, node: str, uuid: str) -> str:
        return f"{self.claim} = {self.claim_of(node, uuid)}"

    def bump(self, column: str, key: str) -> str:
        """A JSON object with the counter under `key` one higher."""
        # A foreign program may have left anything in the column; it must not make the statement fail.
        sound = f"CASE WHEN jsonb_typeof({column}) = 'object' THEN {column} ELSE '{{}}' END"
        is_number = f"jsonb_typeof({column} -> '{key}') = 'number'"
        count = f"CASE WHEN {is_number} THEN ({column} ->> '{key}')::numeric ELSE 0 END"
        return f"({sound} || jsonb_build_object('{key}', {count} + 1))"

    def errors_push(self, entry: str) -> str:
        """The errors with one more, which came as text; the first and the last 19 stay."""
        if self.errors_type == "jsonb":
            sound = "CASE WHEN jsonb_typeof(errors) = 'array' THEN errors ELSE '[]' END"
            kept = f"CASE WHEN jsonb_array_length({sound}) >= 20 THEN ({sound}) - 1 ELSE {sound} END"
            return f"({kept} || jsonb_build_array(({entry})::text::jsonb))"
        kept = "CASE WHEN cardinality(errors) >= 20 THEN errors[1:1] || errors[3:] ELSE errors END"
        return f"({kept} || ({entry})::text::jsonb)"

    def failure(self, attempt: str, error: str) -> str:
        """An entry for `errors_push`, of the present moment."""
        at = f"""to_char({self.now}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
        return f"jsonb_build_object('at', {at}, 'attempt', {attempt}, 'error', ({error})::text)"

    def greatest(self, one: str, other: str) -> str:
        return f"greatest({one}, {other})"

    def upsert(self, key: str) -> str:
        """What to do with a row that is there already; assignments follow."""
        return f"ON CONFLICT ({key}) DO UPDATE SET"

    def given(self, column: str) -> str:
        """In an upsert: the value that the insert brought."""
        return f"excluded.{column}"

    any_of, end_of = (
        "= ANY (ARRAY(",
        "))",
    )  # one of the ids of a sub-select: a plan that no estimate can spoil

    def opaque(self, column: str) -> str:
        """A column that the planner shall not look up an index for: it only guards a row found by its id."""
        return f"{column}::text" if column == "state" else column  # the others are in no index


class _TextDialect(Dialect):
    """Where JSON, lists and states are text in the database, too."""

    @property
    def clock(self) -> str:
        return self.now

    def while_alive(self, uuid: str) -> str:
        return ""

    def before(self, seconds: str) -> str:
        return self.after(f"(-{seconds})")

    def json(self, value: str) -> str:
        return value

    def json_list(self, value: str) -> str:
        return value

    def tag_list(self, value: str) -> str:
        return value

    def state(self, value: str) -> str:
        return value

    def each_object(self, value: str, name: str) -> str:
        return self.each(value, name)

    any_of, end_of = "IN (", ")"


class MySQLDialect(_TextDialect):
    name = "mysql"
    quote = "`"
    collation = "utf8mb4_nopad_bin"  # MariaDB's; on MySQL the connection says utf8mb4_0900_bin
    locks: str

    def __init__(self, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.locks = self.table("staffa_locks")

    tables_present = (
        "SELECT table_name FROM information_schema.tables WHERE table_schema = coalesce(:prefix, database())"
    )

    def begin_migration(self) -> Sequence[str]:
        return ()

    @property
    def now(self) -> str:
        return "coalesce(:now, utc_timestamp(6))"

    def after(self, seconds: str) -> str:
        return f"timestampadd(MICROSECOND, round(({seconds}) * 1000000), {self.now})"

    def moment(self, value: str) -> str:
        return f"CAST({value} AS datetime(6))"

    def text(self, column: str) -> str:
        return f"CAST({column} AS char)"

    def moment_text(self, column: str) -> str:
        return f"date_format({column}, '%Y-%m-%d %H:%i:%s.%f')"

    def list_text(self, column: str) -> str:
        return f"CAST({column} AS char)"

    def errors_text(self, column: str) -> str:
        return f"CAST({column} AS char)"

    def each(self, value: str, name: str) -> str:
        return f"JSON_TABLE({value}, '$[*]' COLUMNS (value json PATH '$')) AS {name}"

    def each_pair(self, value: str, name: str) -> str:
        keys = f"JSON_TABLE(JSON_KEYS({value}), '$[*]' COLUMNS (name varchar(20) PATH '$')) AS keys_of_{name}"
        pick = f"JSON_VALUE({value}, concat('$.\"', keys_of_{name}.name, '\"'))"
        return f"(SELECT keys_of_{name}.name AS `key`, {pick} AS value FROM {keys}) AS {name}"

    def field(self, value: str, name: str) -> str:
        # Text out of JSON has a collation of its own, which does not compare with that of our columns.
        return f"(JSON_VALUE({value}, '$.{name}') COLLATE {self.collation})"

    def number(self, value: str) -> str:
        return f"CAST({value} AS signed)"

    def claimed_by(self, node: str, uuid: str) -> str:
        return f"JSON_ARRAY({node}, {uuid})"

    claimant = "JSON_VALUE(attempted_by, '$[1]')"
    claim = f"{claimant} COLLATE {collation}"

    def claim_of(self, node: str, uuid: str) -> str:
        return uuid

    def bump(self, column: str, key: str) -> str:
        return (
            f"JSON_SET(coalesce({column}, '{{}}'), '$.{key}', "
            f"coalesce(CAST(JSON_VALUE({column}, '$.{key}') AS signed), 0) + 1)"
        )

    def errors_push(self, entry: str) -> str:
        kept = "CASE WHEN JSON_LENGTH(errors) >= 20 THEN JSON_REMOVE(errors, '$[1]') ELSE errors END"
        return f"JSON_ARRAY_APPEND({kept}, '$', JSON_EXTRACT({entry}, '$'))"

    def failure(self, attempt: str, error: str) -> str:
        at = f"date_format({self.now}, '%Y-%m-%dT%H:%i:%s.%fZ')"
        return f"JSON_OBJECT('at', {at}, 'attempt', {attempt}, 'error', {error})"

    def upsert(self, key: str) -> str:
        return "ON DUPLICATE KEY UPDATE"

    def given(self, column: str) -> str:
        return f"VALUES({column})"

    def opaque(self, column: str) -> str:
        return column


class SQLiteDialect(_TextDialect):
    """SQLite has no clock of its own: it reads the machine's, in milliseconds. So `:now` is always bound,
    from the same clock, in microseconds; the fallback serves those who run a statement by hand."""

    name = "sqlite"
    skip_locked = ""  # one writer at a time
    tables_present = "SELECT name FROM sqlite_master WHERE type = 'table' AND :prefix IS NULL"

    def begin_migration(self) -> Sequence[str]:
        return ()  # whoever writes is alone

    @property
    def now(self) -> str:
        return "coalesce(:now, strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"

    def after(self, seconds: str) -> str:
        # Whole seconds and microseconds of a moment before 1970 would both be negative: counted from long before it.
        micros = (
            f"((CAST(strftime('%s', {self.now}) AS INTEGER) + {_LONG_BEFORE}) * 1000000"
            f" + CAST(substr({self.now}, 21, 6) AS INTEGER) + CAST(round(({seconds}) * 1000000) AS INTEGER))"
        )
        return (
            f"strftime('%Y-%m-%d %H:%M:%S', {micros} / 1000000 - {_LONG_BEFORE}, 'unixepoch')"
            f" || printf('.%06d', {micros} % 1000000)"
        )

    def moment(self, value: str) -> str:
        return value

    def text(self, column: str) -> str:
        return column

    def moment_text(self, column: str) -> str:
        return column

    def list_text(self, column: str) -> str:
        return column

    def errors_text(self, column: str) -> str:
        return column

    def each(self, value: str, name: str) -> str:
        return f"json_each({value}) AS {name}"

    def each_pair(self, value: str, name: str) -> str:
        return f"json_each({value}) AS {name}"

    def field(self, value: str, name: str) -> str:
        return f"json_extract({value}, '$.{name}')"

    def number(self, value: str) -> str:
        return f"CAST({value} AS INTEGER)"

    def claimed_by(self, node: str, uuid: str) -> str:
        return f"json_array({node}, {uuid})"

    claimant = "json_extract(attempted_by, '$[1]')"
    claim = "attempted_by"  # the whole text, as the claim wrote it

    def claim_of(self, node: str, uuid: str) -> str:
        return self.claimed_by(node, uuid)

    def bump(self, column: str, key: str) -> str:
        # A foreign program may have left anything in the column; it must not make the statement fail.
        sound = (
            f"CASE WHEN json_valid({column}) AND json_type({column}) = 'object' THEN {column} ELSE '{{}}' END"
        )
        return f"json_set({sound}, '$.{key}', coalesce(json_extract({sound}, '$.{key}'), 0) + 1)"

    def errors_push(self, entry: str) -> str:
        sound = "CASE WHEN json_valid(errors) AND json_type(errors) = 'array' THEN errors ELSE '[]' END"
        kept = (
            f"CASE WHEN json_array_length({sound}) >= 20 THEN json_remove({sound}, '$[1]') ELSE {sound} END"
        )
        return f"json_insert({kept}, '$[#]', json({entry}))"

    def failure(self, attempt: str, error: str) -> str:
        # A foreign program may have left a blob in the column, which no JSON holds.
        number = f"CAST({attempt} AS INTEGER)"
        return (
            f"json_object('at', replace({self.now}, ' ', 'T') || 'Z', 'attempt', {number}, 'error', {error})"
        )

    def greatest(self, one: str, other: str) -> str:
        return f"max({one}, {other})"

    def opaque(self, column: str) -> str:
        return f"+{column}"


DIALECTS: dict[str, type[Dialect]] = {
    "postgres": Dialect,
    "mysql": MySQLDialect,
    "sqlite": SQLiteDialect,
}


@cache
def _arguments(text: str) -> list[str]:
    """Split arguments at spaces, except inside brackets and quotes."""
    arguments: list[str] = []
    current, depth, quoted = "", 0, False
    for character in text.strip():
        quoted ^= character == "'"
        depth += (character == "(") - (character == ")")
        if character == " " and depth == 0 and not quoted:
            arguments.append(current)
            current = ""
        else:
            current += character
    return [*arguments, current] if current else arguments
