"""Sampling, spans and the collector."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from postbus.telemetry import collector
from postbus.telemetry.spans import Tracing

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-1] + "0"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keeps the spans."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Iterator[Tracing]:
    """Tracing that keeps spans in memory and samples one half."""
    tracing = Tracing()
    running = collector.Collector(exporter, ratio=0.5, tracing=tracing)
    yield tracing
    running.stop()


def spin(tracing: Tracing, coin: float) -> None:
    """Make the coin fall as told."""
    tracing._coin = lambda: coin


@pytest.mark.parametrize(
    ("coin", "parent", "sampled"),
    [
        pytest.param(0.49, None, True, id="coin says yes"),
        pytest.param(0.5, None, False, id="coin says no"),
        pytest.param(0.99, SAMPLED, True, id="parent says yes"),
        pytest.param(0.0, UNSAMPLED, False, id="parent says no"),
        pytest.param(0.0, "00-" + "0" * 32 + "-b7ad6b7169203331-01", True, id="unreadable parent: the coin decides"),
        pytest.param(0.9, "ff" + SAMPLED[2:], False, id="version ff is none (W3C)"),
        pytest.param(0.9, "01" + SAMPLED[2:] + "-more", True, id="a later version is read as far as it is known"),
        pytest.param(0.9, SAMPLED + "\r\nx: y", False, id="a parent with a tail of header"),
    ],
)
def test_sampling(tracing: Tracing, coin: float, parent: str | None, sampled: bool) -> None:
    """A decision that is brought is obeyed; else the coin."""
    spin(tracing, coin)
    assert sampled == (tracing.trace_start("smtp session", parent=parent) is not None)


def test_a_span_is_exported_with_its_family(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    """The child belongs to the parent's trace, and its traceparent is what an event carries on."""
    parent = tracing.trace_start("accept", kind="server", parent=SAMPLED, server__address="mx")
    assert parent is not None
    assert SAMPLED[3:35] == parent.trace_id == parent.traceparent[3:35]
    assert parent.traceparent.endswith("-01")
    child = tracing.trace_start("send orders", kind="producer", parent=parent.traceparent)
    assert child is not None
    child.set(attempt=2)
    child.end("timeout")
    parent.end()
    tracing._tracer.span_processor.force_flush()  # type: ignore[union-attr]
    sent, accepted = exporter.get_finished_spans()
    assert ("send orders", "timeout", {"attempt": 2}) == (sent.name, sent.status.description, dict(sent.attributes or {}))
    assert accepted.context is not None
    assert sent.parent is not None
    assert accepted.context.span_id == sent.parent.span_id
    assert {"server.address": "mx"} == dict(accepted.attributes or {})


def test_nothing_is_traced_without_a_collector() -> None:
    """Off means off, whatever a peer brings."""
    assert Tracing().trace_start("x", parent=SAMPLED) is None
    assert collector.start(endpoint=None, ratio=1.0, environ={}) is None


@pytest.mark.parametrize(
    ("endpoint", "environ", "expected"),
    [
        pytest.param("http://c:4318", {}, True, id="setting"),
        pytest.param(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True, id="variable"),
        pytest.param(None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, True, id="traces variable"),
        pytest.param("http://c:4318", {"OTEL_SDK_DISABLED": "True"}, False, id="SDK off"),
        pytest.param("http://c:4318", {"OTEL_TRACES_EXPORTER": "none"}, False, id="exporter none"),
        pytest.param(None, {}, False, id="nothing"),
    ],
)
def test_who_wants_traces(endpoint: str | None, environ: dict[str, str], expected: bool) -> None:
    """A setting or the OTEL_* variables, which can also say no."""
    assert expected == collector.wanted(endpoint, environ)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, 0.25, id="setting"),
        pytest.param({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0, id="always on"),
        pytest.param({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0, id="always off"),
        pytest.param({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, 0.1, id="ratio"),
        pytest.param({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "many"}, 0.25, id="no number"),
        pytest.param({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "7"}, 1.0, id="too much"),
    ],
)
def test_sampling_ratio(environ: dict[str, str], expected: float) -> None:
    """OTEL_TRACES_SAMPLER wins over the setting."""
    assert expected == collector.sampling_ratio(0.25, environ)


def test_a_dead_collector_never_blocks() -> None:
    """With a collector that accepts and says nothing, spans cost no time, and stopping keeps to its bound."""
    tracing = Tracing()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        running = collector.start(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", ratio=1.0, environ={}, tracing=tracing)
        assert running is not None
        began = time.monotonic()
        for _ in range(3_000):
            trace = tracing.trace_start("accept")
            assert trace is not None
            trace.end()
        running.stop(timeout_s=0.2)
        assert time.monotonic() - began < 5
        assert tracing.trace_start("late") is None
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("postbus"))
