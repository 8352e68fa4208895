"""The whole way, by a real ``postbus run`` on its shipped defaults: spooled or held, parsed, delivered, with telemetry on."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests import brokers
from tests.bench.figures import Series
from tests.bench.measuring import Load, Plan, Sample, Server, aiosmtpd_sink, cpu, duel, rate, smtp_sink
from tests.e2e.certificates import Authority
from tests.e2e.harness import POLL_S, Postbus, running, wait_until
from tests.e2e.postfix import folder_for_postfix, need_postfix, postfix

LOAD = Load(8_000)
DRAIN_TIMEOUT_S = 120.0
RATE_POLL_S = 0.002
"""A run takes a second: looking for its end every 20 ms would add 1 % to it. Looking costs the bridge CPU, so where that is measured
it is looked at less often."""


def defaults(**changes: Any) -> dict[str, Any]:
    """Return what an operator must say, and nothing else: where, to what and for whom. *changes* replace keys."""
    whole: dict[str, Any] = {
        "listeners": {"mx": {"address": "127.0.0.1:0"}},
        "sinks": {"file": {"kind": "file", "path": "{folder}/events.jsonl"}},
        "routes": [{"name": "everyone", "match": "*", "sinks": ["file"]}],
        "spool": {"folder": "{folder}/spool"},
        "sidecar": {"address": "127.0.0.1:0"},
    }
    return {**whole, **changes}


@contextmanager
def bridge(
    plan: Plan, name: str, config: Mapping[str, Any], environment: Mapping[str, str] | None = None, poll_s: float = POLL_S
) -> Iterator[tuple[Postbus, Server]]:
    """Run postbus in a folder of the plan; its effective settings go into the report under *name*."""
    with running(plan.folder / name, config, environment=environment) as postbus:
        plan.settings[name] = postbus.get("/config", "application/json").json()
        yield postbus, Server(psutil.Process(postbus.pid), postbus.address(), lambda: postbus.wait_delivered(DRAIN_TIMEOUT_S, poll_s))


def against_smtp_sink(plan: Plan) -> tuple[Series, Series, str]:
    """CPU beside smtp-sink's."""
    load = Load(plan.count(LOAD.messages))
    with bridge(plan, "bridge-cpu", defaults()) as (_, ours), smtp_sink() as theirs:
        mine, others = duel(plan, ours, theirs, load)
    return cpu(mine), cpu(others), _told(mine, load)


def against_aiosmtpd(plan: Plan) -> tuple[Series, Series, str]:
    """Rate beside an aiosmtpd that keeps nothing."""
    load = Load(plan.count(LOAD.messages))
    with bridge(plan, "bridge-aiosmtpd", defaults(), poll_s=RATE_POLL_S) as (_, ours), aiosmtpd_sink() as theirs:
        mine, others = duel(plan, ours, theirs, load)
    return rate(mine), rate(others), _told(mine, load)


def against_postfix(plan: Plan) -> tuple[Series, Series, str]:
    """Rate beside a Postfix that queues and discards, its queue on the same disk; both until nothing is left to do."""
    need_postfix()
    load = Load(plan.count(LOAD.messages // 2))
    with folder_for_postfix() as folder:
        ca = Authority(folder).file
        with (
            postfix(folder, {"example.net": "discard:"}, ca=ca) as peer,
            bridge(plan, "bridge-postfix", defaults(), poll_s=RATE_POLL_S) as (_, ours),
        ):
            _as_shipped(folder / "etc")
            queue = folder / "queue"
            pid = int((queue / "pid" / "master.pid").read_text())
            drained = partial(wait_until, lambda: _empty(queue), "queue", DRAIN_TIMEOUT_S, RATE_POLL_S)
            theirs = Server(psutil.Process(pid), f"127.0.0.1:{peer.port}", drained)
            mine, others = duel(plan, ours, theirs, load)
    accepted = Series("/s", tuple(sample.accepted_s for sample in others))
    return rate(mine), rate(others), f"{_told(mine, load)}; Postfix accepted {accepted.median:.0f}/s"


def hold_on_kafka(plan: Plan) -> tuple[Series, Series, str]:
    """CPU with every 250 resting on Kafka's acknowledgement."""
    load = Load(plan.count(LOAD.messages))
    folder = plan.folder / "kafka"
    folder.mkdir()
    with _kafka(folder) as kafka:
        topic = asyncio.run(kafka.create_topic("bench"))
        sinks = {"kafka": {"kind": "kafka", "bootstrap": [kafka.bootstrap], "topic": topic}}
        routes = [{"name": "everyone", "match": "*", "sinks": ["kafka"]}]
        config = defaults(sinks=sinks, routes=routes, acceptance="hold")
        with bridge(plan, "hold-kafka", config) as (_, ours), smtp_sink() as theirs:
            mine, others = duel(plan, ours, theirs, load)
    return cpu(mine), cpu(others), f"{_told(mine, load)}; one broker, one partition"


@contextmanager
def _kafka(folder: Path) -> Iterator[brokers.Kafka]:
    kafka = brokers.make_kafka(folder)
    kafka.start()
    try:
        yield kafka
    finally:
        if kafka.start_command:
            kafka.stop()


def _told(samples: list[Sample], load: Load) -> str:
    accepted = Series("/s", tuple(sample.accepted_s for sample in samples))
    done = Series("/s", tuple(sample.done_s for sample in samples))
    spent = Series("us", tuple(sample.cpu_us for sample in samples))
    return (
        f"{load.messages} messages a round; postbus {spent.median:.0f} us, accepted {accepted.median:.0f}/s, delivered {done.median:.0f}/s"
    )


def _as_shipped(etc: Path) -> None:
    """Give back the setting that the end-to-end tests lower: Postfix's own default for deliveries at once."""
    for command in (["postconf", "-c", str(etc), "-X", "default_destination_concurrency_limit"], ["postfix", "-c", str(etc), "reload"]):
        program = str(Path(need_postfix()).with_name(command[0]))
        subprocess.run([program, *command[1:]], check=True, capture_output=True, timeout=30)


def _empty(queue: Path) -> bool:
    """Return whether no message is in the queue (qmgr(8): incoming, active, deferred)."""
    return not any(path.is_file() for name in ("incoming", "active", "deferred") for path in (queue / name).rglob("*"))
