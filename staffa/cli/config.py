"""`staffa config`: what an instance is told, by whom, and whether that makes sense."""

import difflib
import os
from collections.abc import Iterable
from typing import Any

import click

from staffa import Queue, Staffa
from staffa.cli.render import duration, print_json, print_table
from staffa.cli.target import database_file, instance, json_option, named_as_set, with_target
from staffa.config import ENVIRONMENT, OPTIONS
from staffa.errors import InvalidOption, MissingExtra

__all__ = ["config"]


@click.command()
@with_target
@json_option
def config(target: str | None, database: str | None, prefix: str | None, as_json: bool) -> None:
    """Show every option, its value, and where that comes from; exit code 1 when something is wrong."""
    app, errors = _tried(target, database, prefix)
    options = {name: (_value(app, name), _source(app, name)) for name in OPTIONS} if app else {}
    warnings = list(_warnings(app))
    if as_json:
        print_json(
            {
                "valid": not errors,
                "options": {
                    name: {"value": value, "source": source} for name, (value, source) in options.items()
                },
                "errors": errors,
                "warnings": warnings,
            }
        )
    else:
        if options:
            rows = [(name, _shown(name, value), source) for name, (value, source) in options.items()]
            print_table(("OPTION", "VALUE", "FROM"), rows)
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
        for error in errors:
            click.echo(f"error: {error}", err=True)
    if errors:
        raise SystemExit(1)


def _tried(target: str | None, database: str | None, prefix: str | None) -> tuple[Staffa | None, list[str]]:
    try:
        app = instance(target, url=database, prefix=prefix)
    except InvalidOption as error:
        return None, [named_as_set(str(problem)) for problem in error.problems]
    except click.ClickException as error:
        return None, [error.format_message()]
    except MissingExtra as error:
        return None, [str(error)]
    file = database_file(app)
    if file is not None and not file.parent.is_dir():
        return app, [f"url: there is no folder {file.parent} for the database file; make it first"]
    return app, []


def _value(app: Staffa, name: str) -> Any:
    match name:
        case "url":
            return app.config.database.safe
        case "queues":
            return {queue: _queue(options) for queue, options in app.config.queues.items()}
        case _:
            return getattr(app.config, name)


def _queue(options: Queue) -> dict[str, Any]:
    return {"limit": options.limit, "paused": options.paused, "ack": options.ack}


def _source(app: Staffa, name: str) -> str:
    return named_as_set(app.config.sources[name])


def _shown(name: str, value: Any) -> str:
    match name:
        case "queues":
            return ", ".join(_queue_shown(queue, options) for queue, options in value.items()) or "none"
        case "stage_interval" | "grace_period":
            return duration(value)
        case _:
            return "–" if value is None else str(value)


def _queue_shown(name: str, options: dict[str, Any]) -> str:
    notes = ["paused"] if options["paused"] else []
    if options["ack"] != "batch":
        notes.append(f"ack {options['ack']}")
    return f"{name}={options['limit']}" + (f" ({', '.join(notes)})" if notes else "")


def _warnings(app: Staffa | None) -> Iterable[str]:
    for name in sorted(os.environ):
        if name.startswith("STAFFA_") and name not in ENVIRONMENT and not name.startswith("STAFFA_TEST_"):
            close = difflib.get_close_matches(name, ENVIRONMENT, n=1)
            yield f"the environment variable {name} means nothing{f'; did you mean {close[0]}?' if close else ''}"
    if app is not None and not app.config.queues:
        yield "there are no queues: this instance can enqueue jobs, and runs none"
