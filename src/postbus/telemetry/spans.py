"""Traces: spans for the few that are sampled, next to nothing for the rest.

Sampling is decided here, before the SDK is asked: an unsampled span costs 5.5 us inside the SDK and 0.2 us here. A caller that brings
a decision (a ``traceparent``) is obeyed; otherwise a coin is flipped. Without a collector nothing is sampled at all.

Our own spans are not made current: no context variables are touched, parents are passed as ``traceparent`` texts (W3C Trace Context
s3.2), which is also the form in which an event carries them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
KINDS = {"server": SpanKind.SERVER, "producer": SpanKind.PRODUCER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}


class Trace:
    """One sampled span. ``end`` it exactly once."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits, for log lines."""
        return self.traceparent[3:35]

    def set(self, **attributes: str | float | bool) -> None:
        """Add attributes; a double underscore in a name stands for a dot (``server__address``)."""
        self._span.set_attributes({key.replace("__", "."): value for key, value in attributes.items()})

    def end(self, error: str | None = None) -> None:
        """End the span; *error* is a word of ours (``timeout``), never a peer's text."""
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end()


class Tracing:
    """Whether and how spans are made. One per process (``TRACING``); off until ``start``."""

    def __init__(self) -> None:
        self._tracer: Tracer | None = None
        self._ratio = 0.0
        self._coin: Callable[[], float] = random.random

    def start(self, tracer: Tracer, *, ratio: float, coin: Callable[[], float] = random.random) -> None:
        """Sample a *ratio* (0 to 1) of those who bring no decision; *coin* returns a number in [0, 1)."""
        self._tracer, self._ratio, self._coin = tracer, ratio, coin

    def stop(self) -> None:
        """Sample nothing any more; spans under way may still end."""
        self._tracer = None

    def trace_start(self, name: str, *, kind: str = "internal", parent: str | None = None, **attributes: str | int) -> Trace | None:
        """Start a span if it is sampled, else return ``None``: no attribute is built and no SDK is asked for what nobody will see.

        Args:
            name: of the span; ours, few different ones.
            kind: server, producer, client or internal.
            parent: a ``traceparent`` that decides; one that cannot be read counts as none.
            attributes: as in ``Trace.set``.
        """
        tracer = self._tracer
        if tracer is None:
            return None
        found = _TRACEPARENT.fullmatch(parent) if parent else None
        sampled = int(found[3], 16) & TraceFlags.SAMPLED if found else self._coin() < self._ratio
        if not sampled:
            return None
        context = None
        if found:
            remote = SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
            context = set_span_in_context(NonRecordingSpan(remote))
        trace = Trace(tracer.start_span(name, context=context, kind=KINDS[kind]))
        if attributes:
            trace.set(**attributes)
        return trace


TRACING = Tracing()
"""The process's tracing."""
