"""`staffa queues`."""

import json

from staffa import Job

from .conftest import Ask, Eventually, Run, Spawn


def test_list_counts_by_state_and_names_the_nodes(
    staffa: Run, ask: Ask, spawn: Spawn, eventually: Eventually
) -> None:
    ask(
        lambda app: app.enqueue_all(
            [Job(worker="a.b", queue="mail"), Job(worker="a.b", queue="mail", schedule_in=60)]
        )
    )
    spawn("start", "tasks:app", "--node", "north")
    eventually(lambda: ask(lambda app: app.list_queues()))

    table = staffa("queues", "list", "tasks:app").stdout.splitlines()
    document = json.loads(staffa("queues", "list", "tasks:app", "--json").stdout)

    assert table[0].split() == ["QUEUE", "SCHEDULED", "AVAILABLE", "NODES"]
    assert table[1].split() == ["default", "0", "0", "north", "(0", "of", "2", "running)"]
    assert table[2].split() == ["mail", "1", "1", "none"]
    default, mail = document
    assert default["queue"] == "default"
    assert default["nodes"][0].items() >= {"node": "north", "limit": 2, "running": 0, "alive": True}.items()
    assert mail == {"queue": "mail", "counts": {"available": 1, "scheduled": 1}, "nodes": []}


def test_list_of_nothing_says_so(staffa: Run, ask: Ask) -> None:
    ask(lambda app: app.migrate())

    assert staffa("queues", "list", "tasks:app").stdout.startswith("no queues")
    assert json.loads(staffa("queues", "list", "tasks:app", "--json").stdout) == []
