"""Draining a spool that was filled while the receiver was away: rate against a bare aiohttp client with the same bodies and receiver.

The receiver says how long it took from its first request to its last, so neither the sink's pauses nor starting a client counts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen

from tests.bench.bridge import DRAIN_TIMEOUT_S, bridge, defaults
from tests.bench.figures import Series
from tests.bench.measuring import Load, Plan, Sample, child, in_turn, line_of, rate, send
from tests.e2e.harness import free_port

CONCURRENCY = 32
LOAD = Load(4_000)
SECRET = "whsec_" + base64.b64encode(b"a secret of the bench alone").decode()


def draining(plan: Plan) -> tuple[Series, Series, str]:
    """Fill, open the receiver, drain; then the bare client; in turn."""
    count, port = plan.count(LOAD.messages), free_port()
    sink = {
        "kind": "webhook",
        "url": f"http://127.0.0.1:{port}/hook",
        "concurrency": CONCURRENCY,
        "signing_secrets": [{"env": "BENCH_SECRET"}],
    }
    config = defaults(sinks={"hook": sink}, routes=[{"name": "everyone", "match": "*", "sinks": ["hook"]}])
    sample = plan.folder / "request.json"
    with bridge(plan, "webhooks", config, {"BENCH_SECRET": SECRET}) as (postbus, server):

        def ours() -> Sample:
            before_s = server.cpu_s
            send(server.address, Load(count))
            filled_s = server.cpu_s
            with _receiver(port, count, str(sample)) as receiver:
                rate_s = _rate(receiver)
                postbus.wait_delivered(DRAIN_TIMEOUT_S)
            return Sample((server.cpu_s - filled_s) * 1e6 / count, count / max(1e-9, filled_s - before_s), rate_s)

        def bare() -> Sample:
            arguments = (f"http://127.0.0.1:{port}/hook", str(count), str(CONCURRENCY), str(sample))
            with _receiver(port, count, "") as receiver, child("tests.bench.posting", *arguments) as client:
                rate_s = _rate(receiver)
                return Sample(float(line_of(client)), rate_s, rate_s)

        samples = in_turn(plan, {"postbus": ours, "aiohttp": bare})
    spent = {name: Series("us", tuple(one.cpu_us for one in found)).median for name, found in samples.items()}
    note = f"{count} messages a round, signed; draining cost postbus {spent['postbus']:.0f} us each, the bare client {spent['aiohttp']:.0f}"
    return rate(samples["postbus"]), rate(samples["aiohttp"]), note


@contextmanager
def _receiver(port: int, count: int, sample: str) -> Iterator[Popen[str]]:
    with child("tests.bench.receiving", str(port), str(count), sample) as process:
        assert line_of(process) == "ready"
        yield process


def _rate(receiver: Popen[str]) -> float:
    """Return requests per second as the receiver saw them, once it has seen all."""
    return float(json.loads(line_of(receiver))["rate_s"])
