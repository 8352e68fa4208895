"""An aiohttp server that answers 204: ``python -m tests.bench.receiving PORT COUNT [FILE]``.

Prints ``ready``, and after COUNT requests one line of JSON with their rate; *FILE* gets headers and body of the first request.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from pathlib import Path

import aiohttp.web

from postbus.app.loop import loop_factory


async def serve(port: int, count: int, sample: str) -> None:
    """Receive until the process ends."""
    seen: list[float] = []

    async def hook(request: aiohttp.web.Request) -> aiohttp.web.Response:
        body = await request.read()
        seen.append(time.monotonic())
        if len(seen) == 1 and sample:
            kept = {"headers": dict(request.headers), "body": base64.b64encode(body).decode()}
            Path(sample).write_text(json.dumps(kept))
        if len(seen) == count:
            print(json.dumps({"rate_s": (count - 1) / max(1e-9, seen[-1] - seen[0])}), flush=True)
        return aiohttp.web.Response(status=204)

    app = aiohttp.web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/hook", hook)
    runner = aiohttp.web.AppRunner(app, access_log=None)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as main:
        main.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
