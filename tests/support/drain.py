"""A process that claims and completes jobs until none is left: `python -m tests.support.drain URL`.

It prints the ids that it claimed, as a JSON list.
"""

import asyncio
import json
import os
import sys

from staffa.connections import connections_for, parse_url
from staffa.engines import engine_for
from tests.support.producer import Claimer, completed


async def drain(url: str) -> list[int]:
    """Claim, complete, and claim again, three at a time."""
    parsed = parse_url(url)
    connections = connections_for(parsed)
    producer = Claimer(engine_for(parsed.kind), connections.run, node=f"process-{os.getpid()}")
    claim = await producer.round_trip(demand=3)
    ids: list[int] = []
    while claim.jobs:
        ids += [job.id for job in claim.jobs]
        claim = await producer.round_trip([completed(job) for job in claim.jobs], demand=3)
        assert claim.lost == []
    await connections.close()
    return ids


if __name__ == "__main__":
    print(json.dumps(asyncio.run(drain(sys.argv[1]))))
