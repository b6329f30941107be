"""What the migrations say, read as text: nothing here needs a server."""

import re

import pytest

from staffa.engines.dialect import DIALECTS
from staffa.migrations import Migrations

DATABASES = ("postgres", "mysql", "sqlite")
PREFIXES = (None, "private")

TABLES = {
    *("oban_jobs", "oban_peers"),
    *("staffa_producers", "staffa_queues", "staffa_messages", "staffa_crons", "staffa_cron_runs"),
    "staffa_migrations",
}
MYSQL_TABLES = {"staffa_locks"}

OBAN_COLUMNS = {
    "id": "bigserial PRIMARY KEY",
    "state": "\"oban_job_state\" NOT NULL DEFAULT 'available'",
    "queue": "text NOT NULL DEFAULT 'default'",
    "worker": "text NOT NULL",
    "args": "jsonb NOT NULL DEFAULT '{}'",
    "errors": "jsonb[] NOT NULL DEFAULT ARRAY[]::jsonb[]",
    "attempt": "integer NOT NULL DEFAULT 0",
    "max_attempts": "integer NOT NULL DEFAULT 20",
    "inserted_at": "timestamp without time zone NOT NULL DEFAULT timezone('UTC', now())",
    "scheduled_at": "timestamp without time zone NOT NULL DEFAULT timezone('UTC', now())",
    "attempted_at": "timestamp without time zone",
    "completed_at": "timestamp without time zone",
    "attempted_by": "text[]",
    "discarded_at": "timestamp without time zone",
    "priority": "integer NOT NULL DEFAULT 0",
    "tags": "text[] DEFAULT ARRAY[]::text[]",
    "meta": "jsonb DEFAULT '{}'",
    "cancelled_at": "timestamp without time zone",
}
OBAN_STATES = (
    *("available", "suspended", "scheduled", "executing", "retryable"),
    *("completed", "discarded", "cancelled"),
)
OBAN_CHECKS = {
    *("worker_length", "queue_length", "positive_max_attempts"),
    *("attempt_range", "non_negative_priority"),
}

MADE = re.compile(r"^CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?(\S+) \(")
DROPPED = re.compile(r"^DROP TABLE (?:IF EXISTS )?(\S+)$")

databases = pytest.mark.parametrize("database", DATABASES)
prefixes = pytest.mark.parametrize("prefix", PREFIXES)


def up(database: str, prefix: str | None = None) -> list[str]:
    dialect = DIALECTS[database](prefix)
    return [dialect.render(text) for step in Migrations(dialect).steps for text in step.up]


def down(database: str, prefix: str | None = None) -> list[str]:
    dialect = DIALECTS[database](prefix)
    return [dialect.render(text) for step in reversed(Migrations(dialect).steps) for text in step.down]


def tables(pattern: re.Pattern[str], statements: list[str]) -> list[str]:
    """The tables that the statements make or drop, as they are spelled."""
    return [found[1] for statement in statements if (found := pattern.match(statement))]


def plain(name: str) -> str:
    """A table's name without its quotes."""
    return name.strip('"`')


def statement(statements: list[str], start: str) -> str:
    """The one statement that starts so."""
    [found] = [text for text in statements if text.startswith(start)]
    return found


def columns(table: str) -> dict[str, str]:
    """The columns of a CREATE TABLE, one a line, with all that is said about each."""
    lines = [line.strip().removesuffix(",") for line in table.splitlines()[1:-1]]
    return dict(line.split(" ", 1) for line in lines if not line.startswith(("CONSTRAINT ", "INDEX ")))


@databases
def test_versions_count_up_from_one(database: str) -> None:
    steps = Migrations(DIALECTS[database]()).steps

    assert [step.version for step in steps] == list(range(1, len(steps) + 1))


@databases
@prefixes
def test_every_statement_renders_with_no_spelling_left_over(database: str, prefix: str | None) -> None:
    for text in (*up(database, prefix), *down(database, prefix)):
        assert text
        assert not re.search(r"\{\w|\w\}", text), text


@databases
def test_a_statement_has_no_semicolon_at_its_end_and_no_placeholder(database: str) -> None:
    for text in (*up(database), *down(database)):
        assert not text.endswith(";")
        assert not re.search(r"(?<![:\w]):[a-z]", text), text
        assert "%s" not in text


@databases
def test_every_table_of_the_design_is_made_on_every_database(database: str) -> None:
    made = [plain(name) for name in tables(MADE, up(database))]

    assert len(made) == len(set(made))
    assert set(made) == (TABLES | MYSQL_TABLES if database == "mysql" else TABLES)


@databases
@prefixes
def test_every_table_is_made_under_the_prefix(database: str, prefix: str | None) -> None:
    quote = DIALECTS[database].quote
    start = f"{quote}{prefix}{quote}.{quote}" if prefix else quote

    for name in tables(MADE, up(database, prefix)):
        assert name.startswith(start)
        assert name.count(".") == (1 if prefix else 0)


@databases
@prefixes
def test_down_drops_all_that_up_made(database: str, prefix: str | None) -> None:
    made = tables(MADE, up(database, prefix))
    dropped = tables(DROPPED, down(database, prefix))

    assert sorted(dropped) == sorted(made)


@databases
def test_down_does_nothing_but_drop(database: str) -> None:
    assert all(text.startswith("DROP ") for text in down(database))


@databases
@prefixes
def test_tables_that_others_own_are_never_named(database: str, prefix: str | None) -> None:
    text = "\n".join((*up(database, prefix), *down(database, prefix)))

    assert "oban_crons" not in text
    assert "oban_producers" not in text


@databases
def test_every_database_has_the_columns_of_a_job(database: str) -> None:
    dialect = DIALECTS[database]()
    table = statement(up(database), f"CREATE TABLE {dialect.jobs} ")
    extra = () if database == "postgres" else ("unique_key",)

    for name in (*OBAN_COLUMNS, *extra):
        assert re.search(rf"^    {name} ", table, re.MULTILINE), name


@databases
def test_the_text_for_other_tools_holds_every_step_and_its_note(database: str) -> None:
    migrations = Migrations(DIALECTS[database]())

    text = migrations.text()

    assert len(tables(MADE, text.split("\n\n"))) == len(tables(MADE, up(database)))
    assert text.count("INSERT INTO") - text.count("INSERT IGNORE INTO") <= len(migrations.steps)
    assert re.findall(r"VALUES \((\d+), '", text) == [str(step.version) for step in migrations.steps]


def test_postgres_jobs_have_the_columns_of_oban_in_its_order() -> None:
    table = columns(statement(up("postgres"), 'CREATE TABLE "oban_jobs" '))

    assert list(table.items()) == list(OBAN_COLUMNS.items())


def test_postgres_jobs_have_the_checks_of_oban() -> None:
    text = "\n".join(up("postgres"))

    assert set(re.findall(r"CONSTRAINT (\w+) CHECK", text)) == OBAN_CHECKS
    assert "ADD CONSTRAINT non_negative_priority CHECK (priority >= 0) NOT VALID" in text


@pytest.mark.parametrize(
    ("prefix", "name"), [(None, '"oban_job_state"'), ("private", '"private"."oban_job_state"')]
)
def test_postgres_states_are_the_enum_of_oban_in_its_order(prefix: str | None, name: str) -> None:
    kind = statement(up("postgres", prefix), "CREATE TYPE ")

    assert kind.startswith(f"CREATE TYPE {name} AS ENUM")
    assert tuple(re.findall(r"'(\w+)'", kind)) == OBAN_STATES
    assert f"state {name} NOT NULL" in "\n".join(up("postgres", prefix))
    assert f"DROP TYPE {name}" in down("postgres", prefix)


def test_postgres_says_the_version_of_oban_in_a_comment_and_comments_on_nothing_else() -> None:
    comments = [text for text in up("postgres") if "COMMENT ON" in text]

    assert comments == ["COMMENT ON TABLE \"oban_jobs\" IS '14'"]


def test_postgres_peers_are_unlogged_and_nothing_else_is() -> None:
    unlogged = [text for text in up("postgres") if "UNLOGGED" in text]

    assert tables(MADE, unlogged) == ['"oban_peers"']


def test_postgres_makes_the_schema_of_the_prefix_first_and_leaves_it_in_place() -> None:
    assert 'CREATE SCHEMA IF NOT EXISTS "private"' in up("postgres", "private")[0]
    assert not any("CREATE SCHEMA" in text for text in up("postgres"))
    assert not any("SCHEMA" in text for text in down("postgres", "private"))


@pytest.mark.parametrize("database", ["postgres", "sqlite"])
def test_every_index_on_jobs_is_partial_where_the_database_can(database: str) -> None:
    dialect = DIALECTS[database]()
    indexes = [
        text for text in up(database) if text.startswith("CREATE INDEX") and f"ON {dialect.jobs} " in text
    ]

    assert indexes
    assert all(" WHERE " in text and " gin " not in text.lower() for text in indexes)


def test_mysql_tables_compare_text_by_its_bytes() -> None:
    made = [text for text in up("mysql") if MADE.match(text)]

    assert all(
        text.endswith(") ENGINE = InnoDB DEFAULT CHARACTER SET = utf8mb4 COLLATE = utf8mb4_nopad_bin")
        for text in made
    )


def test_mysql_moments_have_microseconds() -> None:
    text = "\n".join(up("mysql"))

    assert not re.search(r"datetime(?!\(6\))|timestamp(?!\(6\))", text, re.IGNORECASE)


def test_mysql_defaults_that_are_expressions_stand_in_brackets() -> None:
    text = "\n".join(up("mysql"))

    assert not re.search(r"json [^,\n]*DEFAULT (?!\()", text)
    assert not re.search(r"DEFAULT utc_timestamp", text)


def test_mysql_makes_the_jobs_last_and_drops_them_first() -> None:
    # Statements that make tables commit at once there: a step that broke off must be seen as not taken.
    assert tables(MADE, up("mysql"))[-1] == "`oban_jobs`"
    assert MADE.match(up("mysql")[-1])
    assert tables(DROPPED, down("mysql"))[0] == "`oban_jobs`"


def test_mysql_can_begin_again_after_a_step_that_broke_off() -> None:
    *others, jobs = up("mysql")

    assert all(text.startswith(("CREATE TABLE IF NOT EXISTS ", "INSERT IGNORE INTO ")) for text in others)
    assert jobs.startswith("CREATE TABLE `oban_jobs` ")
    assert all(text.startswith("DROP TABLE IF EXISTS ") for text in down("mysql"))
