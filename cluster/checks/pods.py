"""Check pods against the profile `restricted` of Kubernetes' Pod Security Standards, and rules of our own."""

from collections.abc import Iterator
from typing import Any

_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
}
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SECCOMP = {"RuntimeDefault", "Localhost"}
_TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"


def containers_of(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """List all containers of a pod."""
    return [c for kind in ("initContainers", "containers", "ephemeralContainers") for c in pod.get(kind, [])]


def check_restricted(pod: dict[str, Any], added: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """Check a pod against the profile `restricted`, whose names of fields the lines contain.

    Args:
        pod: spec of the pod.
        added: containers that an operator adds to it.
    """
    own = pod.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"restricted: {name} must not be set"
    for volume in pod.get("volumes", []):
        for kind in set(volume) - {"name"} - _VOLUMES:
            yield f"restricted: volume {volume['name']} is a {kind}"
    for entry in own.get("sysctls", []):
        if entry["name"] not in _SYSCTLS:
            yield f"restricted: sysctl {entry['name']} is not allowed"
    yield from (f"restricted: {problem}" for problem in _options(own))
    for container in [*containers_of(pod), *(added or [])]:
        yield from (f"restricted: {container['name']}: {problem}" for problem in _container(container, own))


def _options(context: dict[str, Any]) -> Iterator[str]:
    """Check the fields that pods and containers have in common."""
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "windowsOptions.hostProcess must not be set"
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type", "") not in _SELINUX or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions are not allowed"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _SECCOMP:
        yield "appArmorProfile must be RuntimeDefault or Localhost"
    if context.get("runAsUser") == 0:
        yield "runAsUser must not be 0"


def _container(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    """Check a container; `pod` is the security context of its pod, which holds unless it has its own."""
    own = container.get("securityContext", {})
    yield from _options(own)
    if own.get("privileged"):
        yield "privileged must not be set"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation must be false"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot must be true"
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in _SECCOMP:
        yield "seccompProfile.type must be RuntimeDefault or Localhost"
    if own.get("procMount", "Default") != "Default":
        yield "procMount must be Default"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "capabilities.drop must contain ALL"
    for name in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"capabilities.add {name} is not allowed"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort must not be set"
    hooks = [container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    hooks += list(container.get("lifecycle", {}).values())
    if any(hook.get(kind, {}).get("host") for hook in hooks for kind in ("httpGet", "tcpSocket")):
        yield "host of a probe or hook must not be set"


def check_pod(pod: dict[str, Any], added: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """Check a pod: the profile, an account without a token, sizes.

    Args:
        pod: spec of the pod.
        added: containers that an operator adds to it.
    """
    yield from check_restricted(pod, added)
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: jobs could use the pod's rights"
    for container in pod["containers"]:
        if any(mount["mountPath"].startswith(_TOKENS) for mount in container.get("volumeMounts", [])):
            yield f"{container['name']}: has a token of Kubernetes, which jobs could use"
    for container in [*containers_of(pod), *(added or [])]:
        sizes = container.get("resources", {})
        if sizes.get("requests") != sizes.get("limits") or not sizes.get("limits"):
            yield f"{container['name']}: set requests and limits to equal values; Ray uses the limits"
        elif "ephemeral-storage" not in sizes["limits"]:
            yield f"{container['name']}: ephemeral-storage is missing; a full disk would evict other pods"
