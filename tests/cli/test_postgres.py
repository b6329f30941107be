"""The command line on PostgreSQL: every command, and every way in which the server may refuse."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import Result

from staffa import connections
from tests.support.oban_tables import OBAN, OLD_OBAN
from tests.support.servers import PostgresServer, free_port, server_needed, with_database

from .conftest import Eventually, Run, Spawn, Sql

TABLES = "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
INDEXES = "SELECT indexname::text FROM pg_indexes WHERE tablename = 'oban_jobs'"
SCHEMAS = "SELECT nspname::text FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"


def sentence(result: Result, code: int = 1) -> str:
    """What a failed command said: one error, in one line, and no traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.stderr.rstrip().endswith(line)
    return line


def done(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def finished(process: "subprocess.Popen[str]", within: float = 300) -> tuple[str, str]:
    output, errors = process.communicate(timeout=within)
    assert process.returncode == 0, output + errors
    return output, errors


def make(sql: Sql, statements: Any) -> None:
    for statement in statements:
        sql(statement)


# migrate


def test_migrate_goes_up_and_down_and_tells_where_it_stands(staffa: Run, database: str, sql: Sql) -> None:
    missing = staffa("migrate", "status", "--database", database)
    assert missing.exit_code == 1
    assert "there are no tables of Staffa" in missing.stdout

    assert "taken: 1 " in done(staffa("migrate", "up", "--database", database))
    assert "the tables are current" in done(staffa("migrate", "status", "--database", database))
    assert {"oban_jobs", "staffa_producers"} <= set(sql(TABLES))

    down = staffa("migrate", "down", "--database", database, input="y\n")
    assert "no job would be lost. Go on?" in down.stderr
    assert "taken back: 1 " in done(down)
    assert sql(TABLES) == []


def test_a_prefix_is_a_schema_for_every_command(staffa: Run, database: str, sql: Sql) -> None:
    where = ("--database", database, "--prefix", "My Jobs")

    assert "schema My Jobs: the tables are current" in done(staffa("migrate", "up", *where))
    assert "My Jobs" in sql(SCHEMAS)
    assert sql(TABLES) == []
    assert "no jobs" in done(staffa("jobs", "list", *where))
    assert "no queues" in done(staffa("queues", "list", *where))
    assert json.loads(done(staffa("config", *where, "--json")))["options"]["prefix"] == {
        "value": "My Jobs", "source": "flag",
    }  # fmt: skip
    assert "tables at version" in done(staffa("start", *where, "--queues", "a=1", "--dry-run"))
    assert "run `staffa migrate up --database" in sentence(staffa("jobs", "list", "--database", database))
    done(staffa("migrate", "down", *where, "--yes"))


def test_sqlite_has_no_schema_for_a_prefix(staffa: Run) -> None:
    assert "prefix" in sentence(staffa("jobs", "list", "--database", "sqlite:///jobs.db", "--prefix", "jobs"))


@pytest.mark.parametrize("version", ["oban-11", "oban-14"])
def test_the_adoption_of_obans_tables_is_told_in_words(
    staffa: Run, database: str, sql: Sql, version: str
) -> None:
    make(sql, OBAN[version])
    sql("INSERT INTO oban_jobs (worker) VALUES ('Obx.Noop')")

    status = staffa("migrate", "status", "--database", database, "--json")
    assert status.exit_code == 1
    assert (json.loads(status.stdout)["usable"], json.loads(status.stdout)["adopted"]) == (True, False)
    text = staffa("migrate", "status", "--database", database).stdout
    assert "a table oban_jobs of Oban's, which Staffa can use" in text

    up = done(staffa("migrate", "up", "--database", database))
    assert "beside Oban's table oban_jobs, which is left as it was" in up
    assert "current, version 1, beside Oban's table" in up
    assert json.loads(done(staffa("migrate", "status", "--database", database, "--json")))["adopted"] is True

    down = staffa("migrate", "down", "--database", database, input="y\n")
    assert "Oban's table oban_jobs stays, and so does every job in it: 1 job (1 available)" in down.stderr
    assert "Staffa's own tables; Oban's stay, with the jobs in them" in done(down)
    assert sql("SELECT count(*) FROM oban_jobs") == [1]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_an_odd_row_hides_no_other(staffa: Run, database: str, sql: Sql, form: list[str]) -> None:
    done(staffa("migrate", "up", "--database", database))
    sql("INSERT INTO oban_jobs (worker) VALUES ('shop.Sound')")
    sql(
        """INSERT INTO oban_jobs (worker, args, meta, tags, attempted_by, errors) VALUES ('shop.Odd', '[1]', '7',
        ARRAY['a', NULL], ARRAY['node', NULL], ARRAY['{}', 'null', '5', '"x"', '{"error": "bad luck"}']::jsonb[])"""
    )

    listed = done(staffa("jobs", "list", "--database", database, *form))
    shown = done(staffa("jobs", "show", "1", "2", "--database", database, *form))

    for output in (listed, shown):
        assert "shop.Sound" in output
        assert "shop.Odd" in output
        assert "[1]" in output
    assert "bad luck" in shown


def test_a_table_of_unknown_shape_is_named_with_what_is_wrong_with_it(
    staffa: Run, database: str, sql: Sql
) -> None:
    sql("CREATE TABLE oban_jobs (id bigint)")

    for command in (("migrate", "up"), ("jobs", "list"), ("start", "--queues", "a=1"), ("demo",)):
        said = sentence(staffa(*command, "--database", database))
        assert "that Staffa did not make, and cannot use: it has no column" in said


def test_a_table_of_an_old_oban_says_to_run_obans_migrations(staffa: Run, database: str, sql: Sql) -> None:
    make(sql, OLD_OBAN)

    assert "run Oban's own migrations first" in sentence(staffa("migrate", "up", "--database", database))


def test_the_index_on_args_is_made_once_and_only_when_asked_for(staffa: Run, database: str, sql: Sql) -> None:
    done(staffa("migrate", "up", "--database", database))
    assert "oban_jobs_args_index" not in sql(INDEXES)

    first = done(staffa("migrate", "up", "--args-index", "--database", database))
    second = done(staffa("migrate", "up", "--args-index", "--database", database))
    as_json = json.loads(done(staffa("migrate", "up", "--args-index", "--database", database, "--json")))

    assert "made: the index oban_jobs_args_index" in first
    assert "the index oban_jobs_args_index is there already" in second
    assert as_json["steps"] == []
    assert "oban_jobs_args_index" in sql(INDEXES)
    assert sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'oban_jobs_args_index'::regclass") == [
        True
    ]


def test_the_index_on_args_of_obans_own_is_taken_as_it_is(staffa: Run, database: str, sql: Sql) -> None:
    make(sql, OBAN["oban-14"])

    told = done(staffa("migrate", "up", "--args-index", "--database", database))

    assert "the index oban_jobs_args_index is there already" in told


def test_the_index_on_args_is_refused_where_there_is_none(staffa: Run) -> None:
    result = staffa("migrate", "up", "--args-index", "--database", "sqlite:///jobs.db")

    assert "--args-index is for PostgreSQL" in sentence(result, 2)
    assert "leave --to out" in sentence(staffa("migrate", "up", "--args-index", "--to", "1"), 2)


# Jobs in and out.


def test_a_job_is_enqueued_performed_listed_and_retried(
    staffa: Run, spawn: Spawn, eventually: Eventually, database: str, project: Path
) -> None:
    (project / "tasks.py").write_text(
        f"from staffa import Staffa, job\napp = Staffa({database!r}, queues={{'default': 2}})\n"
        "@job(max_attempts=1)\nasync def divide(by: int) -> float:\n    return 1 / by\n"
    )
    done(staffa("migrate", "up", "tasks:app"))
    enqueue = (
        "import asyncio, tasks\n"
        "asyncio.run(tasks.app.enqueue_all([tasks.divide.new(1), tasks.divide.new(0)]))\n"
    )
    subprocess.run([sys.executable, "-c", enqueue], cwd=project, check=True)

    worker = spawn("start", "tasks:app", "--node", "one")
    eventually(lambda: "discarded" in done(staffa("jobs", "list", "tasks:app")))
    [queue] = json.loads(done(staffa("queues", "list", "tasks:app", "--json")))
    assert [node["node"] for node in queue["nodes"]] == ["one"]
    eventually(lambda: "completed" in done(staffa("jobs", "list", "tasks:app")))
    worker.send_signal(signal.SIGTERM)
    finished(worker)

    jobs = json.loads(done(staffa("jobs", "list", "tasks:app", "--json")))
    assert [(job["args"], job["state"]) for job in jobs] == [
        ({"by": 0}, "discarded"),
        ({"by": 1}, "completed"),
    ]
    assert "ZeroDivisionError" in done(staffa("jobs", "show", str(jobs[0]["id"]), "tasks:app"))
    assert "available" in done(staffa("jobs", "retry", str(jobs[0]["id"]), "tasks:app"))
    assert "cancelled" in done(staffa("jobs", "cancel", str(jobs[0]["id"]), "tasks:app"))


def test_bench_measures_in_a_schema_of_its_own_and_leaves_nothing(
    staffa: Run, database: str, sql: Sql
) -> None:
    figures = json.loads(done(staffa("bench", "--database", database, "--jobs", "20", "--json")))

    assert figures["latency_p50"] > 0
    assert figures["database"] == database
    assert sql(SCHEMAS) == ["public"]
    assert sql(TABLES) == []


def test_bench_measures_in_the_schema_that_is_said_and_leaves_that(
    staffa: Run, database: str, sql: Sql
) -> None:
    sql("CREATE SCHEMA mine")

    told = done(staffa("bench", "--database", database, "--prefix", "mine", "--jobs", "10"))

    assert f"measured on {database}, in tables of its own" in told
    assert "mine" in sql(SCHEMAS)
    assert sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'mine'::regnamespace") == [0]

    done(staffa("migrate", "up", "--database", database, "--prefix", "mine"))
    refused = sentence(staffa("bench", "--database", database, "--prefix", "mine", "--jobs", "10"))
    assert "a schema without tables of Staffa's" in refused


# demo


def test_a_demo_makes_the_tables_that_are_missing_and_says_how_to_remove_them(
    spawn: Spawn, database: str, sql: Sql, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(project))

    output, _ = finished(spawn("demo", "--limit", "30", "--processes", "1", "--database", database))

    assert "there were no tables of Staffa" in output
    assert "oban_jobs, oban_peers, staffa_producers" in output
    assert re.search(r"the worker is process \d+; kill one if you like \(kill -9 \d+\)", output)
    assert "enqueued 30 = completed " in output
    [folder] = project.glob("staffa-demo-*")
    assert {"figures.db", "workers.log"} <= {path.name for path in folder.iterdir()}
    pasted = next(line for line in output.splitlines() if " migrate down " in line)
    subprocess.run([*shlex.split(pasted), "--yes"], cwd=project, check=True, capture_output=True)
    assert sql(TABLES) == []


def test_without_keep_a_demo_takes_away_what_it_has_made(
    spawn: Spawn, database: str, sql: Sql, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(project))
    options = ("--limit", "5", "--processes", "1", "--no-keep", "--json", "--database", database)

    output, errors = finished(spawn("demo", *options, "--prefix", "demo"))

    summary = json.loads(output)
    assert summary["sum_holds"] is True
    assert summary["database"] == database
    assert "there were no tables of Staffa" in errors
    assert list(project.glob("staffa-demo-*")) == []
    assert sql("SELECT count(*) FROM pg_class WHERE relname = 'oban_jobs'") == [0]


def test_a_demo_leaves_the_tables_that_were_there(staffa: Run, spawn: Spawn, database: str, sql: Sql) -> None:
    done(staffa("migrate", "up", "--database", database))

    output, _ = finished(
        spawn("demo", "--limit", "5", "--processes", "1", "--no-keep", "--database", database)
    )

    assert "there were no tables" not in output
    assert sql("SELECT count(*) FROM oban_jobs") == [5]


def test_a_demo_does_not_take_obans_tables_into_use(staffa: Run, database: str, sql: Sql) -> None:
    make(sql, OBAN["oban-14"])

    said = sentence(staffa("demo", "--limit", "5", "--database", database))

    assert f"`staffa migrate up --database {database}`" in said
    assert "staffa_migrations" not in sql(TABLES)


@pytest.mark.long
def test_kill_9_of_a_worker_of_the_demo_loses_no_job(
    spawn: Spawn, database: str, sql: Sql, eventually: Eventually
) -> None:
    process = spawn("demo", "--limit", "800", "--no-keep", "--database", database)
    assert process.stdout is not None
    introduced = next(line for line in process.stdout if line.startswith("the workers are the processes"))
    victim = int(re.findall(r"\d+", introduced)[0])
    uuids = (
        "SELECT attempted_by[2] FROM oban_jobs WHERE state = 'executing' AND attempted_by[1] LIKE '%."
        + str(victim)
        + "'"
    )
    eventually(lambda: len(sql(uuids)) > 0)

    os.kill(victim, signal.SIGKILL)

    output, errors = finished(process)
    assert f"worker {victim} was killed by signal 9 (SIGKILL); process " in output, errors
    assert "1 worker died" in output
    assert "enqueued 800 = completed" in output


# What a server may refuse.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server that asks the user `app` for a password, `secret`; `app` may use the database `shop`, `guest` nothing."""
    with server_needed(), PostgresServer.fresh(tmp_path_factory.mktemp("server")) as server:
        for statement in (
            "CREATE ROLE app LOGIN PASSWORD 'secret'",
            "CREATE ROLE guest LOGIN",
            "CREATE ROLE shut LOGIN",
            "CREATE DATABASE shop OWNER app",
            "CREATE DATABASE frozen OWNER app",
        ):
            server.query(statement)
        rules = server.folder / "data" / "pg_hba.conf"
        ours = (
            "host all app 127.0.0.1/32 scram-sha-256\nhost all shut 127.0.0.1/32 reject\n",
            rules.read_text(),
        )
        rules.write_text("".join(ours))
        server.query("SELECT pg_reload_conf()")
        yield server


def url_on(server: PostgresServer, name: str, user: str) -> str:
    return with_database(server.url, name).replace("//postgres@", f"//{user}@")


UNREACHABLE = {
    "a closed port": ("postgresql://app@127.0.0.1:{port}/shop", "cannot be reached: ", "Is the server running"),
    "an unknown host": ("postgresql://app@no-such-host.invalid/shop", "cannot be reached: ", "the url right?"),
    "a port that is no number": ("postgresql://app@127.0.0.1:x/shop", "the port must be a number", ""),
    "a misspelt option": ("postgresql://app@127.0.0.1/shop?pool_sise=2", "did you mean 'pool_size'?", ""),
    "a wrong number": ("postgresql://app@127.0.0.1/shop?pool_size=none", "a positive whole number", ""),
    "a wrong sslmode": ("postgresql://app@127.0.0.1/shop?sslmode=never", "expected url to be one that", "sslmode"),
    "MySQL": ("mysql://app@127.0.0.1/shop", "does not run on MySQL", "postgresql://"),
    "one slash": ("postgresql:/shop", "expected url to be one like", "postgresql://user:password@host"),
}  # fmt: skip

COMMANDS = (
    ("jobs", "list"), ("jobs", "cancel", "1"), ("queues", "list"), ("migrate", "up"), ("migrate", "status"),
    ("start", "--queues", "a=1"), ("start", "--queues", "a=1", "--dry-run"), ("demo", "--limit", "1"), ("bench",),
)  # fmt: skip


@pytest.mark.parametrize("what", UNREACHABLE)
@pytest.mark.parametrize("command", [COMMANDS[0], ("start", "--queues", "a=1")], ids=" ".join)
def test_what_cannot_be_reached_is_said_in_a_sentence(staffa: Run, what: str, command: tuple[str]) -> None:
    url, *parts = UNREACHABLE[what]

    said = sentence(staffa(*command, "--database", url.format(port=free_port())))

    assert all(part in said for part in parts)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_that_the_server_cannot_be_reached(staffa: Run, command: tuple[str]) -> None:
    said = sentence(staffa(*command, "--database", f"postgresql://app:secret@127.0.0.1:{free_port()}/shop"))

    assert "cannot be reached" in said
    assert "secret" not in said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_wrong_password_is_named_and_not_shown(
    staffa: Run, server: PostgresServer, command: tuple[str]
) -> None:
    said = sentence(staffa(*command, "--database", url_on(server, "shop", "app:hunter2")))

    assert "app:***@127.0.0.1" in said
    assert "Check the user and the password in the url" in said
    assert "hunter2" not in said


def test_users_whom_the_server_does_not_let_in_are_told_why(staffa: Run, server: PostgresServer) -> None:
    nobody = sentence(staffa("jobs", "list", "--database", url_on(server, "shop", "nobody")))
    shut = sentence(staffa("jobs", "list", "--database", url_on(server, "shop", "shut")))

    assert 'role "nobody" does not exist' in nobody
    assert "Allow it in that file of the server's" in shut


def test_a_setting_that_the_server_does_not_know_is_named(staffa: Run, server: PostgresServer) -> None:
    said = sentence(staffa("jobs", "list", "--database", server.url + "?sslmod=require"))

    assert "an option that the server refuses" in said
    assert '"sslmod"' in said
    assert "sslmode" in said


def test_tls_that_the_server_does_not_speak_is_named(staffa: Run, server: PostgresServer) -> None:
    said = sentence(staffa("jobs", "list", "--database", server.url + "?sslmode=require"))

    assert "could not be reached by TLS" in said


def test_a_missing_database_says_to_create_it(staffa: Run, server: PostgresServer) -> None:
    said = sentence(staffa("migrate", "up", "--database", with_database(server.url, "shoop")))

    assert 'database "shoop" does not exist. Create it (createdb' in said


@pytest.mark.parametrize("command", COMMANDS[:3] + COMMANDS[5:7], ids=" ".join)
def test_missing_tables_say_to_migrate_there(staffa: Run, database: str, command: tuple[str]) -> None:
    said = sentence(staffa(*command, "--database", database))

    assert said.endswith(f"the tables of Staffa are missing: run `staffa migrate up --database {database}`")


def test_a_password_is_not_in_the_command_to_paste(staffa: Run, server: PostgresServer) -> None:
    said = sentence(staffa("jobs", "list", "--database", url_on(server, "shop", "app:secret")))

    assert said.endswith("the tables of Staffa are missing: run `staffa migrate up`")


@pytest.mark.parametrize("command", COMMANDS[:1] + COMMANDS[5:8], ids=" ".join)
def test_newer_tables_say_to_upgrade_the_package(
    staffa: Run, database: str, sql: Sql, command: tuple[str]
) -> None:
    done(staffa("migrate", "up", "--database", database))

    sql("INSERT INTO staffa_migrations (version, name) VALUES (99, 'later')")
    newer = sentence(staffa(*command, "--database", database))

    assert "newer than this code (version 99" in newer
    assert "upgrade the package staffa" in newer


def test_outdated_tables_say_to_migrate(staffa: Run, database: str, sql: Sql) -> None:
    done(staffa("migrate", "up", "--database", database))
    sql("ALTER TABLE staffa_producers DROP COLUMN meta")

    said = sentence(staffa("queues", "list", "--database", database))

    assert "The tables of Staffa are outdated: run `staffa migrate up --database" in said


def test_a_table_that_was_dropped_behind_our_back_is_named(staffa: Run, database: str, sql: Sql) -> None:
    done(staffa("migrate", "up", "--database", database))
    sql("DROP TABLE staffa_producers")

    said = sentence(staffa("queues", "list", "--database", database))

    assert 'relation "staffa_producers" does not exist' in said


def test_a_user_without_rights_is_told_which_are_missing(staffa: Run, server: PostgresServer) -> None:
    theirs = url_on(server, "frozen", "app:secret")
    done(staffa("migrate", "up", "--database", theirs))
    guest = url_on(server, "frozen", "guest")

    for command in COMMANDS[:4] + COMMANDS[5:]:
        said = sentence(staffa(*command, "--database", guest))
        assert "permission denied for " in said
        assert "Grant its user the right to that" in said


@pytest.mark.parametrize("command", [COMMANDS[1], *COMMANDS[5:], ("migrate", "down", "--yes")], ids=" ".join)
def test_a_database_that_takes_no_writes_says_to_use_the_primary(
    staffa: Run, database: str, sql: Sql, command: tuple[str]
) -> None:
    done(staffa("migrate", "up", "--database", database))
    sql(f"ALTER DATABASE {urlsplit(database).path[1:]} SET default_transaction_read_only = on")

    said = sentence(staffa(*command, "--database", database))

    assert "takes no writes" in said
    assert "let the url name the primary" in said
    assert "no jobs" in done(staffa("jobs", "list", "--database", database))


def test_a_missing_driver_says_what_to_install(staffa: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)

    for command in COMMANDS:
        said = sentence(staffa(*command, "--database", "postgresql://app@127.0.0.1/shop"))
        assert 'pip install "staffa[postgres]"' in said
    config = staffa("config", "--database", "postgresql://app@127.0.0.1/shop", "--json")
    assert config.exit_code == 1
    assert 'pip install "staffa[postgres]"' in json.loads(config.stdout)["errors"][0]


def test_a_demo_goes_on_after_a_crash_of_the_server(
    spawn: Spawn,
    server: PostgresServer,
    eventually: Eventually,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(project))
    process = spawn("demo", "--limit", "1000", "--prefix", "crash", "--database", server.url)
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("the workers are"))
    eventually(
        lambda: server.query("SELECT count(*) FROM crash.oban_jobs WHERE state = 'completed'")[0][0] > 50
    )

    server.restart("immediate")

    output, _ = finished(process)
    assert "enqueued 1,000 = completed" in output


# Passwords.


@pytest.mark.skipif(shutil.which("ps") is None, reason="it looks at the commands of processes with ps")
def test_a_demo_shows_its_password_to_nobody(
    spawn: Spawn, server: PostgresServer, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(project))
    url = url_on(server, "shop", "app:secret")

    process = spawn("demo", "--limit", "300", "--processes", "1", "--prefix", "demo", "--database", url)
    assert process.stdout is not None
    head = ""
    for line in process.stdout:
        head += line
        if line.startswith("the worker is process"):
            break
    pid = int(re.findall(r"the worker is process (\d+)", head)[0])
    seen = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout
    output, errors = finished(process)

    assert "staffa start" in seen
    assert "secret" not in seen + head + output + errors
    assert "set STAFFA_DATABASE_URL to the URL first" in output
    pasted = next(line for line in output.splitlines() if " migrate down " in line)
    assert pasted.endswith(" migrate down --prefix demo")
    monkeypatch.setenv("STAFFA_DATABASE_URL", url)
    subprocess.run([*shlex.split(pasted), "--yes"], cwd=project, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p/w?x@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u@h/d?password=p&pool_size=2", "postgresql://u@h/d?password=***&pool_size=2"),
        ("postgresql://u@h:5432/d?application_name=a:b@c", "postgresql://u@h:5432/d?application_name=a:b@c"),
        ("postgresql://h:5432/d?application_name=a@b", "postgresql://h:5432/d?application_name=a@b"),
        ("sqlite:///a:b@c.db", "sqlite:///a:b@c.db"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, safe: str) -> None:
    assert connections.URL(url, "", "", {}).safe == safe
