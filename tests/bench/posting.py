"""A bare aiohttp client: ``python -m tests.bench.posting URL COUNT CONCURRENCY FILE`` posts the request kept in FILE COUNT times.

Prints its CPU microseconds per request. It does what a client must and nothing of what a sink does: no signing, no rendering, no retries.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from pathlib import Path

import aiohttp

from postbus.app.loop import loop_factory

NOT_OURS = frozenset({"host", "content-length", "connection", "accept", "accept-encoding", "user-agent"})


async def post(url: str, count: int, concurrency: int, sample: Path) -> float:
    """Return CPU microseconds per request."""
    kept = json.loads(sample.read_text())
    headers = {name: value for name, value in kept["headers"].items() if name.lower() not in NOT_OURS}
    body = base64.b64decode(kept["body"])
    left = iter(range(count))

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(url, data=body, headers=headers) as answer:
                await answer.read()
                assert answer.status == 204

    began_s = time.process_time()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session, asyncio.TaskGroup() as tasks:
        for _ in range(concurrency):
            tasks.create_task(work(session))
    return (time.process_time() - began_s) * 1e6 / count


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as main:
        print(main.run(post(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))), flush=True)
