"""The rows of the table, each with its bar, what must be reached and what we aim at: add one here and it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import accept, bridge, idle, large, webhooks
from tests.bench.figures import Bar, Series
from tests.bench.measuring import Plan

Measured = tuple[Series, Series | None, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: *measure* returns our series, the peer's or ``None``, and a note. *cheap*: seconds, when there are few messages."""

    name: str
    title: str
    peer: str
    bar: Bar
    measure: Callable[[Plan], Measured]
    cheap: bool = False


ROWS = (
    Row("reused-plain", "accept and drop, plain hook, 1 KB, reused: CPU", "smtp-sink", Bar(1.6, 1.1), accept.reused_plain, cheap=True),
    Row("reused-coroutine", "same, coroutine hook: CPU", "smtp-sink", Bar(2, 1.3), accept.reused_coroutine, cheap=True),
    Row("single", "same, plain hook, one connection each: CPU", "smtp-sink", Bar(1.6, 1.1), accept.single, cheap=True),
    Row("64k", "same, plain hook, 64 KB, reused: CPU", "smtp-sink", Bar(1, 0.7), accept.sixty_four_kib, cheap=True),
    Row("bridge-cpu", "default bridge, 1 KB: CPU", "smtp-sink", Bar(5, 3.3), bridge.against_smtp_sink, cheap=True),
    Row("bridge-postfix", "default bridge, 1 KB: rate", "Postfix", Bar(6, 8, least=True), bridge.against_postfix),
    Row("bridge-aiosmtpd", "default bridge, 1 KB: rate", "aiosmtpd", Bar(1.5, 2, least=True), bridge.against_aiosmtpd),
    Row("hold-kafka", "hold + Kafka, acks=all, 1 KB: CPU", "smtp-sink", Bar(5, 3), bridge.hold_on_kafka),
    Row("webhooks", "webhooks, filled spool, 32 at once: rate", "aiohttp", Bar(0.2, 0.3, least=True), webhooks.draining),
    Row("large-listener", "100 x 25 MiB at once, listener: RSS grows", "", Bar(64), large.listener_growth),
    Row("large-bridge", "100 x 25 MiB at once, bridge, beyond its budget", "", Bar(64), large.bridge_growth),
    Row("idle-plain", "10,000 idle connections, plain: RSS each", "", Bar(8), idle.plain),
    Row("idle-tls", "10,000 idle connections, TLS: RSS each", "", Bar(48), idle.tls),
)
