"""The way out for spans: an OTLP collector. Imports the SDK, so only ``start`` of a configured program should import this.

The OTEL_* variables are honoured: OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER=none, OTEL_TRACES_SAMPLER(_ARG), OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, and by the exporter itself OTEL_EXPORTER_OTLP_*. Spans wait in a bounded queue of a batch processor, which
exports from its own thread: a dead collector costs dropped spans, never time.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from postbus.telemetry.exposition import resource
from postbus.telemetry.spans import TRACING, Tracing

SHUTDOWN_MAX_S = 5.0
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
OTLP_MODULE = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class OtlpMissingError(Exception):
    """A collector is configured, and the extra ``otlp`` is not installed."""


def wanted(endpoint: str | None, environ: Mapping[str, str]) -> bool:
    """Return whether spans have somewhere to go, and nobody turned them off."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return endpoint is not None or any(environ.get(name) for name in ENDPOINT_VARIABLES)


def sampling_ratio(ratio: float, environ: Mapping[str, str]) -> float:
    """Return the share to sample: OTEL_TRACES_SAMPLER and its argument win over the setting *ratio*."""
    sampler = environ.get("OTEL_TRACES_SAMPLER", "").removeprefix("parentbased_")
    if sampler == "always_on":
        return 1.0
    if sampler == "always_off":
        return 0.0
    if sampler != "traceidratio":
        return ratio
    try:
        return min(1.0, max(0.0, float(environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))))
    except ValueError:
        return ratio


class Collector:
    """A tracer provider with one exporter, feeding *tracing*."""

    def __init__(self, exporter: SpanExporter, *, ratio: float, tracing: Tracing = TRACING) -> None:
        self._tracing = tracing
        self._exporter = exporter
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        tracing.start(self._provider.get_tracer("postbus"), ratio=ratio)

    def stop(self, timeout_s: float = SHUTDOWN_MAX_S) -> bool:
        """Export what waits and stop, blocking at most *timeout_s*; return whether it was done in time. Call it in a thread."""
        self._tracing.stop()
        done = threading.Thread(target=self._provider.shutdown, name="postbus-otlp-stop", daemon=True)
        done.start()
        done.join(timeout_s)
        if done.is_alive():
            self._exporter.shutdown()  # ends its retries; what it holds is lost
            return False
        return True


def start(*, endpoint: str | None, ratio: float, environ: Mapping[str, str], tracing: Tracing = TRACING) -> Collector | None:
    """Start exporting spans, or return ``None`` where nothing asks for it.

    Args:
        endpoint: base URL of an OTLP/HTTP collector; ``None`` leaves it to the OTEL_* variables.
        ratio: share sampled, 0 to 1.
        environ: the process's environment.
        tracing: what is fed; the process's own but in tests.

    Raises:
        OtlpMissingError: a collector is configured and the exporter is not installed.
    """
    if not wanted(endpoint, environ):
        return None
    try:
        exporters: Any = importlib.import_module(OTLP_MODULE)
    except ModuleNotFoundError as exc:
        raise OtlpMissingError("a trace collector is configured: install postbus[otlp]") from exc
    exporter = exporters.OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces") if endpoint else exporters.OTLPSpanExporter()
    return Collector(exporter, ratio=sampling_ratio(ratio, environ), tracing=tracing)
