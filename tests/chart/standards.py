"""The restricted Pod Security Standard, as a function from a pod to what breaks it.

https://kubernetes.io/docs/concepts/security/pod-security-standards/ as of Kubernetes 1.34, baseline included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Tree = dict[str, Any]

VOLUME_KINDS = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECCOMP_TYPES = {"RuntimeDefault", "Localhost"}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}


def breaches(pod: Tree) -> list[str]:
    """Return what in *pod* (the ``spec`` of a pod) the restricted standard forbids, as paths; none when it conforms."""
    return [*_pod_breaches(pod), *(breach for container in _containers(pod) for breach in _container_breaches(container, pod))]


def _containers(pod: Tree) -> list[Tree]:
    return [container for key in ("initContainers", "containers", "ephemeralContainers") for container in pod.get(key, [])]


def _pod_breaches(pod: Tree) -> Iterator[str]:
    security = pod.get("securityContext", {})
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield key
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= VOLUME_KINDS:
            yield f"volumes[{volume['name']}]"
    for sysctl in security.get("sysctls", []):
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"securityContext.sysctls[{sysctl['name']}]"
    if security.get("runAsUser") == 0:
        yield "securityContext.runAsUser"


def _container_breaches(container: Tree, pod: Tree) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext", {})
    both = pod.get("securityContext", {}) | own
    capabilities = own.get("capabilities", {})
    seccomp = both.get("seccompProfile", {}).get("type")
    checks = {
        "privileged": not own.get("privileged"),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "capabilities.drop": "ALL" in capabilities.get("drop", []),
        "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "runAsNonRoot": both.get("runAsNonRoot") is True,
        "runAsUser": own.get("runAsUser") != 0,
        "seccompProfile": seccomp in SECCOMP_TYPES,
        "procMount": own.get("procMount", "Default") == "Default",
    }
    yield from (f"{name}.securityContext.{key}" for key, kept in checks.items() if not kept)
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name}.ports.hostPort"
    for hook in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(hook, {}).get("httpGet", {}).get("host") or container.get(hook, {}).get("tcpSocket", {}).get("host"):
            yield f"{name}.{hook}.host"
