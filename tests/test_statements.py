"""Every statement renders in every dialect, and asks for what the verbs bind: a watchman without servers."""

import re
import sqlite3
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, TypeAlias

import pytest

from staffa import payload
from staffa.engine import Ack, Beat, JobFilter, Notice
from staffa.engines import postgres, sqlite, statements
from staffa.engines.basic import BasicEngine
from staffa.engines.dialect import DIALECTS, Dialect
from staffa.engines.postgres import PostgresEngine
from staffa.jobs import COLUMNS, Job
from staffa.migrations import Migrations
from staffa.steps import Statement, Steps

FRAGMENTS = {"JOB_COLUMNS", "CLAIMED_COLUMNS"}


def named_in(module: ModuleType) -> dict[str, str]:
    """The statements of a module."""
    return {
        name: text
        for name, text in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(text, str)
    }


# Those that stand beside the portable ones, for servers that have arrays.
ARRAYS = {name: text for name, text in named_in(statements).items() if "unnest(" in text}

STATEMENTS: Mapping[str, str] = {
    **{name: text for name, text in named_in(statements).items() if name not in ARRAYS},
    "INSERT_MANY": sqlite.INSERT_MANY,
}

# PostgreSQL's own; a bulk insert is put together from what its jobs share and what they do not.
POSTGRES: Mapping[str, str] = {
    **ARRAYS,
    **named_in(postgres),
    **{
        f"INSERT_MANY {' '.join(varying)} due={due} notified={notified}": postgres._insert_many(
            varying, due, notified
        )
        for varying in ((), ("state", "priority"), tuple(postgres._COLUMNS))
        for due in (True, False)
        for notified in (True, False)
    },
}

# A claim is known by the producer's uuid alone there.
NOT_ASKED_FOR = {"postgres": {"node"}, "mysql": {"node"}}

every_statement = pytest.mark.parametrize("name", STATEMENTS)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)

TEXT = re.compile(r"'(?:[^']|'')*'")
PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")


def parameters(sql: str) -> set[str]:
    """The parameters of a statement or of a template."""
    return set(PARAMETER.findall(TEXT.sub("''", sql)))


def named(template: str) -> set[str]:
    """What a template's text names, and the moment that its spellings may ask for."""
    return parameters(template) | {"now"}


def test_there_are_statements_to_look_at() -> None:
    assert len(STATEMENTS) > 20


@every_dialect
@every_statement
@pytest.mark.parametrize("prefix", [None, "private"])
def test_every_statement_renders_with_no_spelling_left_over(
    name: str, dialect: str, prefix: str | None
) -> None:
    rendered = DIALECTS[dialect](prefix).render(STATEMENTS[name])

    assert rendered
    assert not re.search(r"\{\w|\w\}", TEXT.sub("''", rendered)), rendered


@every_dialect
def test_tables_stand_under_the_prefix(dialect: str) -> None:
    spelled = DIALECTS[dialect]("private")

    for name in STATEMENTS.keys() - FRAGMENTS:
        rendered = spelled.render(STATEMENTS[name])
        for table in re.findall(r"(\S*)(?:oban|staffa)_(?!job_state)\w+", rendered):
            assert table.endswith(f"{spelled.identifier('private')}.{spelled.quote}"), rendered


@every_dialect
def test_a_prefix_cannot_leave_its_quotes(dialect: str) -> None:
    quote = DIALECTS[dialect].quote

    table = DIALECTS[dialect](f"a{quote}b").table("t")

    assert table == f"{quote}a{quote}{quote}b{quote}.{quote}t{quote}"


@every_statement
def test_the_parameters_are_the_same_in_all_dialects(name: str) -> None:
    template = STATEMENTS[name]

    for dialect, spelled in DIALECTS.items():
        asked = parameters(spelled().render(template))
        assert asked <= named(template)
        assert parameters(template) - asked <= NOT_ASKED_FOR.get(dialect, set())


@pytest.fixture(scope="module")
def tables() -> Generator[sqlite3.Connection, None, None]:
    """The tables of the embedded database, in memory."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(Migrations(DIALECTS["sqlite"]()).text())
    yield connection
    connection.close()


@pytest.mark.parametrize("name", sorted(STATEMENTS.keys() - FRAGMENTS))
def test_every_statement_can_be_prepared_against_the_embedded_tables(
    name: str, tables: sqlite3.Connection
) -> None:
    rendered = DIALECTS["sqlite"]().render(STATEMENTS[name])
    given: Any = [None] * rendered.count("?") if "?" in rendered else dict.fromkeys(parameters(rendered))

    plan = tables.execute(f"EXPLAIN {rendered}", given).fetchall()

    assert plan


def test_columns_are_selected_in_the_order_in_which_jobs_read_them(tables: sqlite3.Connection) -> None:
    selected = tables.execute(DIALECTS["sqlite"]().render(statements.GET_JOB), {"id": 1}).description

    assert tuple(column[0] for column in selected) == COLUMNS


# Verbs are generators: they can be driven by hand, on any dialect, with rows that a test makes up.

MOMENT = "2026-11-21 09:30:00.000000"
BEAT = Beat("uuid", "staffa", "node", "default", {})
FAILED = Ack(1, MOMENT, "fail", "retryable", 1.0, "{}")

VERBS: Mapping[str, Callable[[BasicEngine], Steps[Any]]] = {
    "insert_jobs": lambda engine: engine.insert_jobs([Job(worker="a"), Job(worker="a")]),
    "ack_and_claim": lambda engine: engine.ack_and_claim(BEAT, [Ack(1, MOMENT, "complete")], 5),
    "ack_and_claim, some unknown": lambda engine: engine.ack_and_claim(BEAT, [FAILED], 5, ["x"]),
    "stage_jobs": lambda engine: engine.stage_jobs(5, ["default"]),
    "heartbeat": lambda engine: engine.heartbeat([BEAT]),
    "producers": lambda engine: engine.producers(25.0),
    "retire_producers": lambda engine: engine.retire_producers([BEAT]),
    "held_states": lambda engine: engine.held_states([1]),
    "rescue_jobs": lambda engine: engine.rescue_jobs(25.0, 5),
    "prune_jobs": lambda engine: engine.prune_jobs({"completed": 1.0, "discarded": 1.0, "cancelled": 1.0}, 5),
    "get_job": lambda engine: engine.get_job(1),
    "list_jobs": lambda engine: engine.list_jobs(JobFilter(["available"], None, ["a"]), 5),
    "count_jobs": lambda engine: engine.count_jobs(),
    "cancel_job": lambda engine: engine.cancel_job(1),
    "retry_job": lambda engine: engine.retry_job(1),
}

Rows: TypeAlias = list[tuple[Any, ...]]

ROWS: Mapping[str, Rows] = {
    statements.INSERT_JOB: [(1, MOMENT, MOMENT)],
    statements.PENDING: [(None,)],
    statements.PRUNABLE: [("completed",), ("discarded",), ("cancelled",)],
    statements.STALE_PRODUCERS: [("uuid", "node")],
    statements.LOCK_PRODUCER: [("uuid",)],
    statements.LOCK_STALE_PRODUCER: [("uuid",)],
    statements.EXECUTING: [(None, MOMENT, None)],
}


ONE_ROW: Rows = [(None, *[None] * 12)]
POSTGRES_ROWS: Mapping[str, Rows] = {
    postgres.INSERT_AND_NOTIFY: [(1, MOMENT, MOMENT, 1)],
    postgres.BEAT_AND_LOOK: [(None, MOMENT, None)],
    **{text: ONE_ROW for name, text in POSTGRES.items() if "_AND_CLAIM" in name},
}


def statements_of(steps: Steps[Any], answers: Callable[[Statement], Rows]) -> list[Statement]:
    """Drive a verb to its end with made-up rows; the statements that it asked for."""
    asked: list[Statement] = []
    try:
        item = next(steps)
        while True:
            rows: list[tuple[Any, ...]] = []
            if isinstance(item, Statement):
                asked.append(item)
                rows = answers(item)
            item = steps.send(rows)
    except StopIteration:
        return asked


def made_up(spelled: Dialect) -> Callable[[Statement], Rows]:
    """Rows for the statements of the verbs: as many for a bulk insert as it has jobs."""
    answers = {spelled.render(template): rows for template, rows in {**ROWS, **POSTGRES_ROWS}.items()}

    def answer(statement: Statement) -> Rows:
        if "jobs" in statement.parameters:
            count = len(payload.decode(statement.parameters["jobs"]))
            return [(id, MOMENT, None) for id in range(1, count + 1)]
        return answers.get(statement.text, [])

    return answer


@every_dialect
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_binds_what_its_statements_ask_for(verb: str, dialect: str) -> None:
    spelled = DIALECTS[dialect]()
    answers = made_up(spelled)

    asked = statements_of(VERBS[verb](BasicEngine(spelled)), answers)

    assert asked
    for statement in asked:
        assert parameters(statement.text) <= statement.parameters.keys(), statement


@every_dialect
def test_every_statement_is_used_by_a_verb(dialect: str) -> None:
    spelled = DIALECTS[dialect]()
    answers = made_up(spelled)
    engine = BasicEngine(spelled)

    used = {one.text for verb in VERBS.values() for one in statements_of(verb(engine), answers)}

    unused = {
        name
        for name, text in STATEMENTS.items()
        if name not in FRAGMENTS and spelled.render(text) not in used
    }
    assert unused == {"INSERT_MANY"}


# PostgreSQL's own.

every_own = pytest.mark.parametrize("name", POSTGRES)

NOTICE = Notice("public.staffa_insert", ['{"queue":"default"}'])
COMPLETED = [Ack(1, MOMENT, "complete"), Ack(2, MOMENT, "complete")]


def alike(count: int) -> list[Job]:
    return [Job(worker="a") for _ in range(count)]


def varied() -> list[Job]:
    one = Job(worker="b", queue="c", priority=3, tags=["d"], meta={"e": 1}, max_attempts=4, schedule_in=5.0)
    return [Job(worker="a"), one, Job(worker="a", scheduled_at=datetime(2027, 1, 1, tzinfo=UTC))]


POSTGRES_VERBS: Mapping[str, Callable[[PostgresEngine], Steps[Any]]] = {
    **VERBS,
    "insert_jobs, one": lambda engine: engine.insert_jobs(alike(1)),
    "insert_jobs, one with a notice": lambda engine: engine.insert_jobs(alike(1), NOTICE),
    "insert_jobs, many with a notice": lambda engine: engine.insert_jobs(alike(2), NOTICE),
    "insert_jobs, varied": lambda engine: engine.insert_jobs(varied()),
    "insert_jobs, varied with a notice": lambda engine: engine.insert_jobs(varied(), NOTICE),
    "insert_jobs, very many": lambda engine: engine.insert_jobs(alike(2_001), NOTICE),
    "notify": lambda engine: engine.notify(NOTICE),
    "ack_jobs, completed": lambda engine: engine.ack_jobs(BEAT, COMPLETED),
    "ack_jobs, mixed": lambda engine: engine.ack_jobs(BEAT, [*COMPLETED, FAILED]),
    "ack_and_claim, nothing to ack": lambda engine: engine.ack_and_claim(BEAT, [], 5),
    "ack_and_claim, completed": lambda engine: engine.ack_and_claim(BEAT, COMPLETED, 5),
    "ack_and_claim, completed, some unknown": lambda engine: engine.ack_and_claim(BEAT, COMPLETED, 5, ["x"]),
    "ack_and_claim, mixed": lambda engine: engine.ack_and_claim(BEAT, [*COMPLETED, FAILED], 5),
    "ack_and_claim, mixed, some unknown": lambda engine: engine.ack_and_claim(
        BEAT, [*COMPLETED, FAILED], 5, ["x"]
    ),
}


@every_own
@pytest.mark.parametrize("prefix", [None, "private"])
def test_every_statement_of_postgres_renders_under_its_prefix(name: str, prefix: str | None) -> None:
    spelled = DIALECTS["postgres"](prefix)

    rendered = spelled.render(POSTGRES[name])

    assert not re.search(r"\{\w|\w\}", TEXT.sub("''", rendered)), rendered
    for table in re.findall(r"(\S*)(?:oban|staffa)_(?!job_state)\w+", rendered):
        assert table.endswith(f"{spelled.identifier(prefix)}.{spelled.quote}" if prefix else spelled.quote), (
            rendered
        )


@pytest.mark.parametrize("verb", POSTGRES_VERBS)
def test_every_verb_of_postgres_binds_what_its_statements_ask_for_and_nothing_else(verb: str) -> None:
    engine = PostgresEngine()

    asked = statements_of(POSTGRES_VERBS[verb](engine), made_up(engine.dialect))

    assert asked
    for statement in asked:
        assert parameters(statement.text) <= statement.parameters.keys(), statement
        assert set(statement.parameters) - parameters(statement.text) <= {"node", "now"}, statement


def test_every_statement_of_postgres_is_used_by_a_verb() -> None:
    engine = PostgresEngine()
    answers = made_up(engine.dialect)

    used = {one.text for verb in POSTGRES_VERBS.values() for one in statements_of(verb(engine), answers)}

    own = {**ARRAYS, **named_in(postgres)}
    assert {name for name, text in own.items() if engine.dialect.render(text) not in used} == set()


def test_a_thousand_jobs_are_one_statement_and_more_are_a_few() -> None:
    engine = PostgresEngine()
    answers = made_up(engine.dialect)

    counts = {
        n: len(statements_of(engine.insert_jobs(alike(n), NOTICE), answers))
        for n in (1, 2, 1_000, 1_001, 2_500)
    }

    assert counts == {1: 1, 2: 1, 1_000: 1, 1_001: 2, 2_500: 3}
