"""Every workload of every set of values meets the restricted Pod Security Standard, and more."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.chart.chart import Tree, cases, render
from tests.chart.standards import breaches

CASES = cases()

SOUND: Tree = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}}],
}


def changed(*path: str | int, value: Any) -> Tree:
    """Return ``SOUND`` with *value* at *path*."""
    pod = copy.deepcopy(SOUND)
    place: Any = pod
    for key in path[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[path[-1]] = value
    return pod


CONTEXT = ("containers", 0, "securityContext")


@pytest.mark.parametrize(
    ("expected", "pod"),
    [
        pytest.param([], SOUND, id="sound"),
        pytest.param(["hostNetwork"], changed("hostNetwork", value=True), id="the node's network"),
        pytest.param(["hostPID"], changed("hostPID", value=True), id="the node's processes"),
        pytest.param(["hostIPC"], changed("hostIPC", value=True), id="the node's shared memory"),
        pytest.param(["volumes[v]"], changed("volumes", value=[{"name": "v", "hostPath": {"path": "/"}}]), id="the node's files"),
        pytest.param([], changed("volumes", value=[{"name": "v", "emptyDir": {}}]), id="an empty folder"),
        pytest.param(["securityContext.sysctls[k]"], changed("securityContext", "sysctls", value=[{"name": "k"}]), id="unsafe sysctl"),
        pytest.param(["securityContext.runAsUser"], changed("securityContext", "runAsUser", value=0), id="root by the pod"),
        pytest.param(["c.securityContext.runAsUser"], changed(*CONTEXT, "runAsUser", value=0), id="root by the container"),
        pytest.param(["c.securityContext.runAsNonRoot"], changed(*CONTEXT, "runAsNonRoot", value=False), id="root allowed"),
        pytest.param(["c.securityContext.privileged"], changed(*CONTEXT, "privileged", value=True), id="privileged"),
        pytest.param(
            ["c.securityContext.allowPrivilegeEscalation"], changed(*CONTEXT, "allowPrivilegeEscalation", value=True), id="escalation"
        ),
        pytest.param(["c.securityContext.capabilities.drop"], changed(*CONTEXT, "capabilities", value={}), id="capabilities kept"),
        pytest.param(
            ["c.securityContext.capabilities.add"],
            changed(*CONTEXT, "capabilities", value={"drop": ["ALL"], "add": ["NET_RAW"]}),
            id="capability added",
        ),
        pytest.param(["c.securityContext.seccompProfile"], changed("securityContext", "seccompProfile", value={}), id="no seccomp"),
        pytest.param(["c.securityContext.procMount"], changed(*CONTEXT, "procMount", value="Unmasked"), id="unmasked /proc"),
        pytest.param(["c.ports.hostPort"], changed("containers", 0, "ports", value=[{"hostPort": 25}]), id="a port of the node"),
        pytest.param(
            ["c.livenessProbe.host"], changed("containers", 0, "livenessProbe", value={"httpGet": {"host": "a"}}), id="a probe elsewhere"
        ),
    ],
)
def test_the_checker_names_each_breach(expected: list[str], pod: Tree) -> None:
    """Each rule of the restricted standard, broken alone, is found and named."""
    assert expected == breaches(pod)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_restricted_standard_is_met(values: Tree) -> None:
    """No set of values yields a pod that the restricted Pod Security Standard would refuse."""
    assert [] == breaches(render(values).pod()["spec"])


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_the_pod_is_locked_down_beyond_the_standard(values: Tree) -> None:
    """Read-only root, a numeric user, no token of the cluster, no neighbours' addresses in the environment, resources set."""
    release = render(values)
    pod, container = release.pod()["spec"], release.container()
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert 65532 == pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert "memory" in container["resources"]["limits"]
    assert not {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"} & {document["kind"] for document in release.documents}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_what_is_written_to_is_a_volume(values: Tree) -> None:
    """The folders postbus writes to are volumes, those it only reads are mounted read-only, and none hides behind a subPath."""
    mounts = {mount["mountPath"]: mount for mount in render(values).container()["volumeMounts"]}
    written = {path for path, mount in mounts.items() if not mount.get("readOnly")}
    assert {"/tmp", "/var/spool/postbus"} == written
    assert not any("subPath" in mount for mount in mounts.values()), "a subPath is never refreshed"
