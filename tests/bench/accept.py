"""Accepting mail and dropping it, with the library alone: CPU per message against smtp-sink's."""

from __future__ import annotations

from tests.bench.figures import Series
from tests.bench.measuring import Load, Plan, cpu, duel, listener, smtp_sink

LOADS = {
    "reused": Load(20_000),
    "single": Load(6_000, reuse=False),
    "64k": Load(6_000, size_octets=64 * 1024),
}


def _against_smtp_sink(plan: Plan, handler: str, load: Load) -> tuple[Series, Series, str]:
    load = Load(plan.count(load.messages), load.size_octets, load.reuse)
    with listener(handler) as ours, smtp_sink() as theirs:
        mine, others = duel(plan, ours, theirs, load)
    return cpu(mine), cpu(others), f"{load.messages} messages a round"


def reused_plain(plan: Plan) -> tuple[Series, Series, str]:
    """A plain hook, connections reused."""
    return _against_smtp_sink(plan, "plain", LOADS["reused"])


def reused_coroutine(plan: Plan) -> tuple[Series, Series, str]:
    """A coroutine hook, connections reused."""
    return _against_smtp_sink(plan, "coroutine", LOADS["reused"])


def single(plan: Plan) -> tuple[Series, Series, str]:
    """A plain hook, one connection for each message."""
    return _against_smtp_sink(plan, "plain", LOADS["single"])


def sixty_four_kib(plan: Plan) -> tuple[Series, Series, str]:
    """A plain hook, larger messages."""
    return _against_smtp_sink(plan, "plain", LOADS["64k"])
