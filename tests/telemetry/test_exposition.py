"""The numbers as Prometheus reads them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from postbus.telemetry.exposition import Exposition, render_metrics, resource
from postbus.telemetry.metrics import METRICS
from postbus.telemetry.numbers import Numbers
from tests.peers import need


@pytest.fixture
def numbers() -> Numbers:
    """Every metric of the table, bumped once."""
    numbers = Numbers()
    for metric in METRICS:
        labels = [f'{name} "quoted\\" \n' for name in metric.labels]
        bump = {"counter": numbers.count, "gauge": lambda name, *rest: numbers.put(name, 7.0, *rest)}
        if metric.kind == "histogram":
            numbers.observe(metric.name, metric.bounds[0], *labels)
            numbers.observe(metric.name, metric.bounds[-1] * 2, *labels)
        else:
            bump[metric.kind](metric.name, *labels)
    return numbers


@pytest.fixture
def exposition(numbers: Numbers) -> Iterator[Exposition]:
    """Render *numbers*."""
    exposition = Exposition(numbers)
    yield exposition
    exposition.close()


def parsed(body: bytes) -> dict[str, Family]:
    """Return the families of a page by name."""
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def test_every_metric_is_exposed_under_its_own_name(exposition: Exposition) -> None:
    """Names, kinds, help and label values are the table's; nothing is appended."""
    body, content_type = exposition.render()
    families = parsed(body)
    assert content_type.startswith("text/plain; version=")
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert (metric.kind, metric.help) == (family.type, family.documentation)
        sample = family.samples[0]
        assert {name: f'{name} "quoted\\" \n' for name in metric.labels} == {k: v for k, v in sample.labels.items() if k != "le"}
        assert metric.name + ("_bucket" if metric.kind == "histogram" else "") == sample.name


def test_histograms_are_cumulative(exposition: Exposition) -> None:
    """Our bucket counts become Prometheus's: cumulative, +Inf equal to the count, and the sum."""
    family = parsed(exposition.render()[0])["postbus_spool_commit_seconds"]
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    assert [1.0] * 14 + [2.0] == [sample.value for sample in buckets]
    assert ["0.001", "30.0", "+Inf"] == [buckets[index].labels["le"] for index in (0, -2, -1)]
    rest = {sample.name: sample.value for sample in family.samples if not sample.name.endswith("_bucket")}
    assert {"postbus_spool_commit_seconds_count": 2.0, "postbus_spool_commit_seconds_sum": 60.001} == rest


def test_a_scrape_sees_what_came_since_the_last(numbers: Numbers, exposition: Exposition) -> None:
    """Facts after the first scrape show in the second."""
    exposition.render()
    numbers.count("postbus_log_lines_dropped_total", by=41)
    assert 42.0 == parsed(exposition.render()[0])["postbus_log_lines_dropped"].samples[0].value


def test_openmetrics_where_it_is_asked_for(exposition: Exposition) -> None:
    """Prometheus servers ask for OpenMetrics, and its stricter parser takes the page."""
    body, content_type = exposition.render("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics_families(body.decode())}  # type: ignore[no-untyped-call]
    assert "postbus_sessions" in names


def test_promtool_finds_nothing_to_say(exposition: Exposition) -> None:
    """Prometheus's own linter takes the page."""
    promtool = need("promtool", "apt-get install prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=exposition.render()[0], capture_output=True, check=False)
    assert (0, b"") == (checked.returncode, checked.stdout + checked.stderr)


def test_who_we_are_may_be_said_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over our words; the instance is the host, not a random id."""
    assert "postbus" == resource().attributes["service.name"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mail")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=postbus-0,service.instance.id=postbus-0")
    attributes = resource().attributes
    assert ("mail", "postbus-0", "postbus-0") == (
        attributes["service.name"],
        attributes["k8s.pod.name"],
        attributes["service.instance.id"],
    )


def test_the_process_has_one_page() -> None:
    """render_metrics() may be called again and again, and shows the process itself too."""
    render_metrics()
    families = parsed(render_metrics()[0])
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    assert "postbus_log_lines_dropped" in families
