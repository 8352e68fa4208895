"""The rendered objects: valid for the cluster, and in agreement with each other where no schema looks."""

from __future__ import annotations

import re

import helm_python
import kubernetes_validate
import pytest

from tests.chart.chart import CHART, GOLDEN, NAMESPACE, RELEASE, Release, Tree, cases, golden_text, render

CASES = cases()
KUBERNETES_VERSIONS = ("1.30", "1.33", "1.37")
"""Oldest (Chart.yaml's kubeVersion), middle and newest minor."""

every_case = pytest.mark.parametrize("values", CASES.values(), ids=CASES)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@every_case
def test_objects_are_valid(values: Tree, version: str) -> None:
    """Every object is valid in the strict sense: required keys there, types right, no key unknown."""
    for document in render(values).documents:
        kubernetes_validate.validate(document, version, strict=True)


@every_case
def test_lint_is_silent(values: Tree) -> None:
    """``helm lint --strict`` finds nothing but that the chart has no picture."""
    report = helm_python.lint(CHART, values, strict=True, kube_version="v1.30.0", quiet=False)
    assert ["icon is recommended"] == [message["error"] for message in report["messages"]]
    assert [] == report["errors"]


@every_case
def test_an_upgrade_renders_what_an_installation_does(values: Tree) -> None:
    """Two renders are equal, so that a controller that renders again and again finds nothing to do."""
    assert render(values).texts == render(values, upgrade=True).texts


def test_golden() -> None:
    """The chart's own values render to the golden file; ``python -m tests.chart.regenerate`` writes it anew."""
    assert (GOLDEN / "default.yaml").read_text() == golden_text(render())


def test_the_package_holds_the_chart(tmp_path: object) -> None:
    """The chart packs into an archive that renders the same, without the values of these tests."""
    archive = helm_python.package(CHART, destination=str(tmp_path))
    with helm_python.Chart.load(archive) as chart:
        assert render().texts == chart.render({}, name=RELEASE, namespace=NAMESPACE)
        assert not [file["name"] for file in chart.files if file["name"].startswith("ci/")]


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        pytest.param("postbus", "postbus", id="release named like the chart"),
        pytest.param("mx-postbus", "mx", id="any other release"),
        pytest.param("a" * 50, "a" * 53, id="longest name Helm allows"),
    ],
)
def test_names(expected: str, name: str) -> None:
    """Objects are named after the release, and leave room for the suffixes."""
    assert expected == render(name=name).workload()["metadata"]["name"]


@every_case
def test_names_and_labels(values: Tree) -> None:
    """Names are DNS labels in the release's namespace, and every object carries the recommended labels."""
    for document in render(values).documents:
        metadata = document["metadata"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"])
        assert NAMESPACE == metadata["namespace"]
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version"} <= set(metadata["labels"])


@every_case
def test_objects_are_named_once(values: Tree) -> None:
    """No two objects of a kind share a name."""
    names = [(document["kind"], document["metadata"]["name"]) for document in render(values).documents]
    assert sorted(set(names)) == sorted(names)


@every_case
def test_selectors_find_the_pods(values: Tree) -> None:
    """Every selector is a part of the pods' labels, and the workload's holds nothing that can change."""
    release = render(values)
    labels = release.pod()["metadata"]["labels"].items()
    assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} == set(release.workload()["spec"]["selector"]["matchLabels"])
    for selector in _selectors(release):
        assert selector.items() <= labels


def _selectors(release: Release) -> list[Tree]:
    spread = release.pod()["spec"].get("topologySpreadConstraints", [])
    return [
        release.workload()["spec"]["selector"]["matchLabels"],
        *(service["spec"]["selector"] for service in release.all("Service")),
        *(budget["spec"]["selector"]["matchLabels"] for budget in release.all("PodDisruptionBudget")),
        *(policy["spec"]["podSelector"]["matchLabels"] for policy in release.all("NetworkPolicy")),
        *(constraint["labelSelector"]["matchLabels"] for constraint in spread),
    ]


@every_case
def test_ports(values: Tree) -> None:
    """Container ports are unprivileged, each number and name once, names short enough; every port of a Service leads to one."""
    release = render(values)
    ports = release.container()["ports"]
    numbers, names = [port["containerPort"] for port in ports], [port["name"] for port in ports]
    assert all(1024 <= number <= 65535 for number in numbers)
    assert all(re.fullmatch(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?", name) for name in names)
    assert len(numbers) == len(set(numbers)) == len(set(names))
    for service in release.all("Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(names)
    for policy in release.all("NetworkPolicy"):
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= set(names)


@every_case
def test_admin_is_never_offered_outside(values: Tree) -> None:
    """The admin port is on Services of type ClusterIP alone, and never beside mail."""
    for service in render(values).all("Service"):
        targets = {port["targetPort"] for port in service["spec"]["ports"]}
        if "admin" in targets:
            assert ({"admin"}, "ClusterIP") == (targets, service["spec"]["type"])


@every_case
def test_mounts_have_volumes(values: Tree) -> None:
    """Every mount names a volume or a claim, and none is left unmounted."""
    release = render(values)
    claims = [claim["metadata"]["name"] for claim in release.workload()["spec"].get("volumeClaimTemplates", [])]
    volumes = [volume["name"] for volume in release.pod()["spec"]["volumes"]] + claims
    assert sorted(volumes) == sorted(mount["name"] for mount in release.container()["volumeMounts"])


@every_case
def test_every_file_named_is_mounted(values: Tree) -> None:
    """What the command and the configuration name below /etc/postbus lies in a mount of its own, secrets unreadable for others."""
    release = render(values)
    container = release.container()
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert ["run", "--config", "/etc/postbus/config/postbus.yaml"] == container["args"]
    assert "config" == mounts["/etc/postbus/config"]
    named = re.findall(r"/etc/postbus/\S+", release.config())
    assert [] == [path for path in named if path.rpartition("/")[0] not in mounts]
    modes = {volume["secret"]["defaultMode"] for volume in release.pod()["spec"]["volumes"] if "secret" in volume}
    assert modes <= {0o440}


@every_case
def test_references_are_rendered(values: Tree) -> None:
    """The ConfigMap, the service account and the headless Service the workload refers to are part of the release."""
    release = render(values)
    pod = release.pod()["spec"]
    (config,) = [volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "config"]
    assert release.one("ConfigMap", config)
    if pod["serviceAccountName"] != "default":
        assert release.one("ServiceAccount", pod["serviceAccountName"])
    if "serviceName" in release.workload()["spec"]:
        assert "None" == release.one("Service", release.workload()["spec"]["serviceName"])["spec"]["clusterIP"]


@every_case
def test_probes_ask_the_sidecar(values: Tree) -> None:
    """The three probes are HTTP on the admin port: a probe on the mail port would be a session, and fail behind PROXY."""
    container = render(values).container()
    asked = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert {"startup": "/startupz", "liveness": "/livez", "readiness": "/readyz"} == {probe: get["path"] for probe, get in asked.items()}
    assert {"admin"} == {get["port"] for get in asked.values()}


@pytest.mark.parametrize(
    ("expected", "values"),
    [
        pytest.param(145, {}, id="10 sleep, 120 drain, 15 flush"),
        pytest.param(135, {"preStopSleepSeconds": 0}, id="no sleep"),
        pytest.param(300, {"terminationGracePeriodSeconds": 300}, id="as asked"),
        pytest.param(66, {"config": {"drain_timeout_s": 40.5}}, id="part of a second"),
    ],
)
def test_grace(expected: int, values: Tree) -> None:
    """A pod gets the time to sleep, drain and flush before it is killed."""
    assert expected == render(values).pod()["spec"]["terminationGracePeriodSeconds"]


def test_a_volume_makes_a_stateful_set() -> None:
    """With persistence each pod has a claim at the spool's folder, which survives the release; without, there is no claim."""
    spool = CASES["spool"]
    release = render(spool)
    (claim,) = release.one("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert ("spool", "/var/spool/postbus") in [(mount["name"], mount["mountPath"]) for mount in release.container()["volumeMounts"]]
    assert "spool" == claim["metadata"]["name"]
    assert ["ReadWriteOncePod"] == claim["spec"]["accessModes"]
    assert {"whenDeleted": "Retain", "whenScaled": "Retain"} == release.workload()["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert [] == render().all("StatefulSet")


def test_one_replica_has_no_budget() -> None:
    """A budget over one pod would only keep its node from being drained."""
    assert [] == render({"replicas": 1}).all("PodDisruptionBudget")
    assert 1 == len(render({"replicas": 2}).all("PodDisruptionBudget"))


def test_a_load_balancer_keeps_the_clients_address() -> None:
    """Outside the cluster the default is Local; inside, the key would be refused."""
    outside = render({"service": {"type": "LoadBalancer"}}).one("Service")["spec"]
    assert "Local" == outside["externalTrafficPolicy"]
    assert "externalTrafficPolicy" not in render().one("Service")["spec"]


def test_restart_on_change_follows_the_configuration_alone() -> None:
    """With ``onConfigChange: restart`` a changed configuration changes the pod, and nothing else does."""

    def pod(**values: object) -> Tree:
        return render({"onConfigChange": "restart"} | values).pod()

    assert pod() == pod(service={"type": "LoadBalancer"})
    assert pod() != pod(config={"source": "/a"})
    assert render({"config": {"source": "/a"}}).pod() == render({"config": {"source": "/b"}}).pod()


def test_notes_say_where_mail_comes_in_and_goes() -> None:
    """After an installation the operator reads each Service's name, each route, and what would lose mail."""
    webhook, trial = render(CASES["webhook"]).notes(), render(CASES["trial"]).notes()
    assert "lmtp: hooks.mail.svc:24" in webhook
    assert "orders: orders@example.org, postmaster, postmaster@* -> orders (hold)" in webhook
    assert ("WARNING" in webhook, "WARNING" in trial) == (False, True)
