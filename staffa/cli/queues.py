"""`staffa queues`: what waits in each queue, and which nodes run it."""

import click

from staffa import JobState, QueueInfo, Staffa
from staffa.cli.render import ago, print_json, print_table, queue_as_json, say
from staffa.cli.target import call, instance, json_option, require_database, with_target

__all__ = ["queues"]


@click.group()
def queues() -> None:
    """Look at queues."""


@queues.command("list")
@with_target
@json_option
def list_queues(target: str | None, database: str | None, prefix: str | None, as_json: bool) -> None:
    """List the queues: how many jobs are in which state, and the nodes that run them."""
    app = instance(target, url=database, prefix=prefix)
    require_database(app)

    async def look(app: Staffa) -> tuple[dict[str, dict[str, int]], list[QueueInfo]]:
        return await app.count_jobs(), await app.list_queues()

    counts, running = call(app, look)
    names = sorted({*counts, *(info.queue for info in running)})
    by_name = {name: [info for info in running if info.queue == name] for name in names}
    if as_json:
        print_json(
            [
                {
                    "queue": name,
                    "counts": counts.get(name, {}),
                    "nodes": [queue_as_json(i) for i in by_name[name]],
                }
                for name in names
            ]
        )
    elif not names:
        say("no queues: there are no jobs, and no node runs")
    else:
        states = [state for state in JobState if any(state in by_state for by_state in counts.values())]
        headers = ["QUEUE", *(state.upper() for state in states), "NODES"]
        rows = [
            [name, *(f"{counts.get(name, {}).get(state, 0):,}" for state in states), _nodes(by_name[name])]
            for name in names
        ]
        print_table(headers, rows, right=headers[1:-1])


def _nodes(running: list[QueueInfo]) -> str:
    return ", ".join(f"{info.node} ({_told(info)})" for info in running) or "none"


def _told(info: QueueInfo) -> str:
    if not info.alive:
        return f"dead, last seen {ago(info.updated_at)}"
    return f"{info.running} of {info.limit} running{', paused' if info.paused else ''}"
