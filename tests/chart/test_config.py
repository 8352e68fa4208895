"""The configuration file the chart renders is one the application takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from postbus import config
from tests.chart.chart import CHART, Tree, cases, render

CASES = cases()


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_application_takes_the_file(values: Tree, tmp_path: Path) -> None:
    """The rendered file loads with the application's own settings class, and says what the values say."""
    text = render(values).config()
    file = tmp_path / "postbus.yaml"
    file.write_text(text)
    settings = config.load(file, {}).settings
    for name, listener in yaml.safe_load(text)["listeners"].items():
        assert listener["address"] == settings.listeners[name].address


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_application_takes_the_environment(values: Tree, tmp_path: Path) -> None:
    """No variable of the pod, nor one that Kubernetes adds for a Service called postbus, is taken for a setting."""
    release = render(values)
    file = tmp_path / "postbus.yaml"
    file.write_text(release.config())
    given = {variable["name"]: variable.get("value", "") for variable in release.container()["env"]}
    injected = {"POSTBUS_PORT": "tcp://10.0.0.1:25", "POSTBUS_SERVICE_HOST": "10.0.0.1", "POSTBUS_SERVICE_PORT_SMTP": "25"}
    assert config.load(file, {}).sha256 == config.load(file, given | injected).sha256


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_application_finds_nothing_wrong(values: Tree, tmp_path: Path) -> None:
    """``postbus check`` misses nothing but what only the pod has: the files mounted there, and its secret variables."""
    file = tmp_path / "postbus.yaml"
    file.write_text(render(values).config())
    findings = [str(finding) for finding in config.check(config.load(file, {}))]
    assert [] == [finding for finding in findings if "/etc/postbus/" not in finding and "environment variable" not in finding]


def test_the_readmes_example_is_one(tmp_path: Path) -> None:
    """The values shown in the chart's README render, and to a configuration the application takes."""
    (example,) = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    file = tmp_path / "postbus.yaml"
    file.write_text(render(yaml.safe_load(example)).config())
    assert "starttls" == config.load(file, {}).settings.listeners["smtp"].tls.mode


def test_numbers_and_texts_survive(tmp_path: Path) -> None:
    """Large numbers stay whole numbers, and texts that look like something else stay text."""
    limits = {"message_max_octets": 10_000_000, "session_max_octets": 10**15}
    smtp = {"address": ":2525", "hostname": "012", "ident": "yes", "limits": limits}
    file = tmp_path / "postbus.yaml"
    file.write_text(render({"config": {"listeners": {"smtp": smtp}}}).config())
    read = config.load(file, {}).settings.listeners["smtp"]
    assert (10_000_000, 10**15) == (read.limits.message_max_octets, read.limits.session_max_octets)
    assert ("012", "yes") == (read.hostname, read.ident)


def test_the_defaults_the_chart_reckons_with_are_the_applications() -> None:
    """The chart's arithmetic and cross-checks repeat these defaults of the application, and no others."""
    fields = config.Settings.model_fields
    assert 120 == fields["drain_timeout_s"].default
    assert "spool" == fields["acceptance"].default
    assert 8 << 30 == fields["spool"].default.max_octets
    assert (2, 512 << 20) == (fields["parsing"].default.workers, fields["parsing"].default.memory_max_octets)
    assert (256 << 20, 64 << 20) == (fields["hold"].default.in_flight_max_octets, fields["dispatch"].default.in_flight_max_octets)
    assert fields["sidecar"].default.enabled
