"""The numbers, rendered for Prometheus.

Counters and gauges are OpenTelemetry observable instruments: at collection their callbacks read the cells. OpenTelemetry has no
observable histogram, and its own costs 16 us per value, so histograms reach the same Prometheus registry through a collector of
prometheus_client's documented kind, which hands over our bucket counts as they stand.

Names are the table's: instruments carry no unit, because the exporter would append it a second time. OTEL_SDK_DISABLED=true turns
the SDK off, and with it counters and gauges here: that is what the variable says.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import accumulate

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource, get_aggregated_resources
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from postbus.telemetry.lines import LOG
from postbus.telemetry.metrics import Metric
from postbus.telemetry.numbers import NUMBERS, Numbers

Observer = Callable[[CallbackOptions], Iterable[Observation]]


def resource() -> Resource:
    """Return who we are; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over our own words.

    The instance id is the host name, which on Kubernetes is the pod's: the SDK's own would be random at every start.
    """
    ours = Resource({"service.name": "postbus", "service.instance.id": socket.gethostname()})
    return get_aggregated_resources([OTELResourceDetector()], initial_resource=ours)


class Exposition:
    """Renders *numbers*; holds a registry of its own, never the libraries' global ones."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(registry=self._registry, scope_info_enabled=False)
        self._provider = MeterProvider(metric_readers=[reader], resource=resource(), shutdown_on_exit=False)
        meter = self._provider.get_meter("postbus")
        for metric in numbers.table.values():
            if metric.kind == "counter":
                meter.create_observable_counter(metric.name.removesuffix("_total"), [self._observer(metric)], description=metric.help)
            elif metric.kind == "gauge":
                meter.create_observable_gauge(metric.name, [self._observer(metric)], description=metric.help)
        self._registry.register(_Histograms(numbers))
        ProcessCollector(registry=self._registry)  # resident memory, CPU seconds, open files: under their customary names

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return (body, content type) for a scraper that sent *accept*: Prometheus text, or OpenMetrics where it is asked for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def close(self) -> None:
        """Give the OpenTelemetry provider back."""
        self._provider.shutdown()

    def _observer(self, metric: Metric) -> Observer:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            reading = self._numbers.reading(metric.name)
            return [Observation(value, dict(zip(metric.labels, labels, strict=True))) for labels, value in reading.items()]

        return observe


class _Histograms:
    """A prometheus_client collector over our own buckets."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[HistogramMetricFamily]:
        for metric in self._numbers.table.values():
            if metric.kind != "histogram":
                continue
            family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            bounds = [*map(str, metric.bounds), "+Inf"]
            for labels, counts, total in self._numbers.histogram(metric.name):
                family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
            yield family

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return nothing, so that registering does not collect."""
        return []


@cache
def _process() -> Exposition:
    NUMBERS.watch("postbus_log_lines_dropped_total", lambda: {(): float(LOG.dropped)})
    return Exposition(NUMBERS)


def render_metrics(accept: str = "") -> tuple[bytes, str]:
    """Return (body, content type) of the process's metrics. Takes a few milliseconds; safe to call from any thread, one at a time."""
    return _process().render(accept)
