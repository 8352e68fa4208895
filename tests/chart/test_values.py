"""The chart's values: closed, explained, used, and refused with their path when they are wrong."""

from __future__ import annotations

import json
import re

import helm_python
import pytest
import yaml

from tests.chart import regenerate
from tests.chart.chart import CHART, Tree, cases, render
from tests.chart.table import OPEN, comments, leaves

CASES = cases()
TEXT = (CHART / "values.yaml").read_text()
OWN: Tree = yaml.safe_load(TEXT)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_schema_takes_every_case(values: Tree) -> None:
    """The chart's own values and every file under ``ci`` conform to the schema."""
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values)


@pytest.mark.parametrize(
    ("place", "values"),
    [
        pytest.param("", {"replica": 1}, id="unknown key"),
        pytest.param("/replicas", {"replicas": -1}, id="negative replicas"),
        pytest.param("/replicas", {"replicas": "two"}, id="replicas in words"),
        pytest.param("/image", {"image": {"name": "x"}}, id="unknown key of the image"),
        pytest.param("/image/digest", {"image": {"digest": "sha256:123"}}, id="short digest"),
        pytest.param("/image/tag", {"image": {"tag": 1.1}}, id="tag that YAML read as a number"),
        pytest.param("/image/pullPolicy", {"image": {"pullPolicy": "always"}}, id="pull policy in lower case"),
        pytest.param("/imagePullSecrets/0", {"imagePullSecrets": ["key"]}, id="pull secret as text"),
        pytest.param("/persistence/size", {"persistence": {"size": "10GB"}}, id="unit that is none"),
        pytest.param("/persistence/accessModes/0", {"persistence": {"accessModes": ["ReadWriteMany"]}}, id="volume shared by pods"),
        pytest.param("/persistence/retention/whenScaled", {"persistence": {"retention": {"whenScaled": "Drop"}}}, id="unknown retention"),
        pytest.param("/tls", {"tls": {"secretName": "x"}}, id="unknown key of tls"),
        pytest.param("/secrets/kafka", {"secrets": {"kafka": "kafka-credentials"}}, id="secret as text"),
        pytest.param("/secrets", {"secrets": {"Kafka": {"existingSecret": "x"}}}, id="secret's name with a capital"),
        pytest.param("/service/type", {"service": {"type": "ExternalName"}}, id="type of Service"),
        pytest.param("/service/ports/smtp", {"service": {"ports": {"smtp": 65536}}}, id="port too high"),
        pytest.param("/service/ports/smtp", {"service": {"ports": {"smtp": "25"}}}, id="port as text"),
        pytest.param("/service/loadBalancerSourceRanges/0", {"service": {"loadBalancerSourceRanges": ["10.0.0.1"]}}, id="no network"),
        pytest.param("/service/ipFamilies/0", {"service": {"ipFamilies": ["ipv4"]}}, id="family in lower case"),
        pytest.param("/adminService", {"adminService": {"type": "LoadBalancer"}}, id="admin outside the cluster"),
        pytest.param("/probes/liveness", {"probes": {"liveness": {"httpGet": {}}}}, id="path of a probe"),
        pytest.param("/preStopSleepSeconds", {"preStopSleepSeconds": 1.5}, id="part of a second"),
        pytest.param("/terminationGracePeriodSeconds", {"terminationGracePeriodSeconds": 0}, id="no grace at all"),
        pytest.param("/resources/limits/memory", {"resources": {"limits": {"memory": "1GB"}}}, id="unit of memory"),
        pytest.param("/podLabels/a", {"podLabels": {"a": 1}}, id="label that is a number"),
        pytest.param("/onConfigChange", {"onConfigChange": "reload"}, id="unknown reaction"),
        pytest.param("/config", {"config": {"listener": {}}}, id="unknown key of the application"),
        pytest.param("/config/acceptance", {"config": {"acceptance": "holt"}}, id="unknown acceptance"),
        pytest.param("/config/listeners/smtp", {"config": {"listeners": {"smtp": {"adress": "x"}}}}, id="unknown key of a listener"),
        pytest.param("/config/drain_timeout_s", {"config": {"drain_timeout_s": -1}}, id="negative drain"),
        pytest.param("/config/routes", {"config": {"routes": []}}, id="no route"),
        pytest.param("/config/routes/0", {"config": {"routes": [{"name": "all", "match": ["*"]}]}}, id="route without sinks"),
        pytest.param("/config/listeners", {"config": {"listeners": {"MX-1": {"address": ":2525"}}}}, id="listener's name"),
        pytest.param("/config/sinks/events", {"config": {"sinks": {"events": {"kind": "carrier pigeon"}}}}, id="unknown kind of sink"),
    ],
)
def test_the_schema_refuses(place: str, values: Tree) -> None:
    """A wrong value is refused before anything is rendered, and the message names its place."""
    with helm_python.Chart.load(CHART) as chart, pytest.raises(helm_python.HelmValuesError) as refusal:
        chart.validate_schema(values)
    assert re.search(rf"at '{re.escape(place)}[/']", str(refusal.value)), refusal.value


def listener(address: str, **more: object) -> Tree:
    """Return values whose listener ``smtp`` is at *address*."""
    return {"config": {"listeners": {"smtp": {"address": address} | more}}}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        pytest.param("config.listeners.smtp.address", listener("0.0.0.0:25"), id="privileged port"),
        pytest.param("config.listeners.smtp.address", listener("0.0.0.0:8080"), id="port of the sidecar"),
        pytest.param("service.ports.smtp", listener("127.0.0.1:2525"), id="loopback behind a Service"),
        pytest.param("service.ports.smtp", listener("unix:/tmp/lmtp.sock"), id="Unix socket behind a Service"),
        pytest.param("service.ports.submission", {"service": {"ports": {"submission": 587}}}, id="port without a listener"),
        pytest.param("service.ports.smtp", listener(":2525", protocol="lmtp") | {"service": {"type": "LoadBalancer"}}, id="LMTP outside"),
        pytest.param(
            "config.listeners.submissions_b.address",
            {"config": {"listeners": {"submissions_a": {"address": ":2526"}, "submissions_b": {"address": ":2526"}}}},
            id="one port for two listeners",
        ),
        pytest.param(
            "config.listeners.submission_east_b",
            {"config": {"listeners": {"submission_east_a": {"address": ":2526"}, "submission_east_b": {"address": ":2527"}}}},
            id="names equal in 15 characters",
        ),
        pytest.param("config.listeners.25", {"config": {"listeners": {"25": {"address": ":2526"}}}}, id="name without a letter"),
        pytest.param(
            "config.listeners.lmtp.address", {"config": {"listeners": {"lmtp": {"protocol": "lmtp"}}}}, id="listener without address"
        ),
        pytest.param("config.sidecar.address", {"config": {"sidecar": {"address": "127.0.0.1:8080"}}}, id="probes that find nobody"),
        pytest.param("config.sidecar.address", {"config": {"sidecar": {"address": "unix:/tmp/http.sock"}}}, id="sidecar without a port"),
        pytest.param("config.sidecar.enabled", {"config": {"sidecar": {"enabled": False}}}, id="no sidecar"),
        pytest.param("config.acceptance", {"config": {"acceptance": "spool"}}, id="spool without a volume"),
        pytest.param(
            "config.routes[0].acceptance",
            {"config": {"routes": [{"name": "all", "match": ["*"], "sinks": ["events"], "acceptance": "spool"}]}},
            id="a route's spool without a volume",
        ),
        pytest.param("config.spool.max_octets", {"config": {"spool": {"max_octets": 1_900_000_000}}}, id="spool larger than its emptyDir"),
        pytest.param("config.spool.max_octets", {"persistence": {"enabled": True, "size": "1500M"}}, id="spool larger than its volume"),
        pytest.param("config.spool.folder", {"config": {"spool": {"folder": "/spool"}}}, id="volume over the root"),
        pytest.param("config.spool.max_octets", {"config": {"spool": {"max_octets": None}}}, id="the application's own bound"),
        pytest.param(
            "resources.limits.ephemeral-storage",
            {"resources": {"limits": {"ephemeral-storage": "1Gi"}}},
            id="evicted before the spool is full",
        ),
        pytest.param("resources.limits.memory", {"resources": {"limits": {"memory": "1Gi"}}}, id="memory less than the bounds add up to"),
        pytest.param("resources.limits.memory", {"config": {"parsing": {"workers": 8}}}, id="more parsers than memory"),
        pytest.param("terminationGracePeriodSeconds", {"terminationGracePeriodSeconds": 144}, id="killed while draining"),
        pytest.param("tls.existingSecret", {"tls": {"existingSecret": "mx"}}, id="certificate nobody uses"),
        pytest.param(
            "tls.existingSecret",
            listener(":2525", tls={"mode": "starttls", "certificate": "/etc/postbus/tls/tls.crt", "key": "/etc/postbus/tls/tls.key"}),
            id="certificate nobody mounted",
        ),
        pytest.param(
            "secrets.admin", {"config": {"sidecar": {"token_file": "/etc/postbus/secrets/admin/token"}}}, id="secret nobody mounted"
        ),
        pytest.param("extraEnv", {"config": {"sidecar": {"token_env": "TOKEN"}}}, id="variable nobody set"),
        pytest.param(
            "service.loadBalancerSourceRanges", {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}}, id="ranges without balancer"
        ),
        pytest.param(
            "service.loadBalancerSourceRanges",
            {"service": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "loadBalancerSourceRanges": ["10.0.0.0/8"]}},
            id="ranges that see a node's address",
        ),
    ],
)
def test_the_cross_checks_refuse(path: str, values: Tree) -> None:
    """Values that are wrong together are refused by one line that starts with the path to correct."""
    with pytest.raises(helm_python.HelmRenderError) as refusal:
        render(values)
    assert [path] == [line.removeprefix("  - ").split(": ")[0] for line in str(refusal.value).splitlines() if line.startswith("  - ")]


def test_everything_wrong_is_said_at_once() -> None:
    """An operator gets all that the cross-checks find in one go."""
    with pytest.raises(helm_python.HelmRenderError) as refusal:
        render({"config": {"acceptance": "spool"}, "terminationGracePeriodSeconds": 1, "service": {"ports": {"x": 1}}})
    assert "3 value(s) to correct" in str(refusal.value)


def test_the_schema_is_the_applications_own() -> None:
    """What the schema says of ``config`` is generated from the settings classes: ``python -m tests.chart.regenerate``."""
    assert regenerate.SCHEMA.read_text() == regenerate.schema()


def test_the_schema_is_closed() -> None:
    """Every object whose keys the schema lists takes no others."""

    def loose(place: object, path: str) -> list[str]:
        if isinstance(place, list):
            return [found for index, item in enumerate(place) for found in loose(item, f"{path}/{index}")]
        if not isinstance(place, dict):
            return []
        own = [path] if "properties" in place and place.get("additionalProperties") is not False else []
        return own + [found for key, item in place.items() for found in loose(item, f"{path}/{key}")]

    # Kubernetes's own, of which the schema looks at the name alone, and a sink of another package, of which it knows the kind.
    assert {"/properties/extraEnv/items", "/$defs/PluginSettings"} == set(loose(json.loads(regenerate.SCHEMA.read_text()), ""))


def test_every_value_is_used_and_every_use_has_a_value() -> None:
    """A key of values.yaml that no template reads, or the reverse, is a mistake that nothing else would show."""
    templates = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())
    used = set(re.findall(r"\.Values\.([A-Za-z.]+)", templates))
    keys = [path for path, _ in leaves(OWN)]
    unread = [key for key in keys if not any(within(key, use) for use in used)]
    unknown = [use for use in used if not any(within(key, use) or within(use, key) for key in keys)]
    assert ([], []) == (unread, unknown)


def within(path: str, tree: str) -> bool:
    """Return whether *path* is *tree* or lies below it."""
    return path == tree or path.startswith(f"{tree}.")


def test_every_value_is_explained() -> None:
    """Each key stands under a comment."""
    said = comments(TEXT)
    assert [] == [path for path, _ in leaves(OWN) if path not in said]


def test_the_readme_lists_every_value() -> None:
    """The table in the chart's README is made from values.yaml: ``python -m tests.chart.regenerate``."""
    assert regenerate.README.read_text() == regenerate.readme()


def test_the_schema_and_the_values_have_the_same_keys() -> None:
    """What values.yaml shows is what the schema takes, at the top and one level down."""
    schema = json.loads(regenerate.SCHEMA.read_text())["properties"]
    assert set(OWN) == set(schema) - {"global"}
    for key, value in OWN.items():
        listed = set(schema[key].get("properties", {}))
        if listed and key not in OPEN and isinstance(value, dict):
            assert set(value) == listed
