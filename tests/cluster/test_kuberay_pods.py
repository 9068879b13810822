"""The pods of the KubeRay files, as kubectl renders them, satisfy the profile `restricted`; its rules are tested."""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from checks import kube
from checks.pods import check_pod, check_restricted, containers_of

from helpers.paths import ROOT

KUBERAY = ROOT / "cluster" / "kuberay"
GOOD: dict[str, Any] = {
    "automountServiceAccountToken": False,
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "a",
            "resources": {
                "requests": {"cpu": "1", "ephemeral-storage": "1Gi"},
                "limits": {"cpu": "1", "ephemeral-storage": "1Gi"},
            },
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
    "volumes": [{"name": "v", "emptyDir": {}}],
}
_OWN = ("securityContext",)
_FIRST = ("containers", 0, "securityContext")
# By what is set where: a part of what is said. The list of Kubernetes 1.34, control by control.
VIOLATIONS: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("hostNetwork",), True, "hostNetwork"),
    (("hostPID",), True, "hostPID"),
    (("hostIPC",), True, "hostIPC"),
    ((*_OWN, "windowsOptions"), {"hostProcess": True}, "windowsOptions.hostProcess"),
    ((*_FIRST, "windowsOptions"), {"hostProcess": True}, "windowsOptions.hostProcess"),
    ((*_FIRST, "privileged"), True, "privileged"),
    ((*_FIRST, "capabilities"), {"drop": ["ALL"], "add": ["SYS_ADMIN"]}, "capabilities.add SYS_ADMIN"),
    ((*_FIRST, "capabilities"), {"drop": ["NET_RAW"]}, "capabilities.drop"),
    (("volumes", 0), {"name": "v", "hostPath": {"path": "/"}}, "volume v is a hostPath"),
    (("volumes", 0), {"name": "v", "nfs": {"server": "a", "path": "/"}}, "volume v is a nfs"),
    (("containers", 0, "ports"), [{"containerPort": 1, "hostPort": 1}], "hostPort"),
    (("containers", 0, "livenessProbe"), {"httpGet": {"host": "a", "port": 1}}, "host of a probe"),
    (("containers", 0, "lifecycle"), {"preStop": {"tcpSocket": {"host": "a", "port": 1}}}, "host of a probe"),
    ((*_OWN, "appArmorProfile"), {"type": "Unconfined"}, "appArmorProfile"),
    ((*_OWN, "seLinuxOptions"), {"type": "spc_t"}, "seLinuxOptions"),
    ((*_FIRST, "seLinuxOptions"), {"role": "sysadm_r"}, "seLinuxOptions"),
    ((*_FIRST, "procMount"), "Unmasked", "procMount"),
    ((*_OWN, "seccompProfile"), {"type": "Unconfined"}, "seccompProfile"),
    ((*_FIRST, "seccompProfile"), {"type": "Unconfined"}, "seccompProfile"),
    ((*_OWN, "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "sysctl kernel.msgmax"),
    ((*_FIRST, "allowPrivilegeEscalation"), True, "allowPrivilegeEscalation"),
    ((*_OWN, "runAsNonRoot"), False, "runAsNonRoot"),
    ((*_FIRST, "runAsNonRoot"), False, "runAsNonRoot"),
    ((*_OWN, "runAsUser"), 0, "runAsUser"),
    ((*_FIRST, "runAsUser"), 0, "runAsUser"),
]


def _render(folder: Path) -> list[dict[str, Any]]:
    """The resources that `kubectl apply -k` would send."""
    if not shutil.which("kubectl"):  # no Python package renders kustomize's files
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Name, spec, and containers that the operator adds, of each pod that comes from a resource."""
    spec = document.get("spec", {})
    if document["kind"] in ("StatefulSet", "Deployment"):
        yield document["metadata"]["name"], spec["template"]["spec"], []
    if "submitterPodTemplate" in spec:
        yield "submitter", spec["submitterPodTemplate"]["spec"], []
    cluster = spec if document["kind"] == "RayCluster" else spec.get("rayClusterSpec")
    if cluster:
        options = cluster["autoscalerOptions"]
        autoscaler = {"name": "autoscaler"} | {name: options[name] for name in ("securityContext", "resources")}
        yield "head", cluster["headGroupSpec"]["template"]["spec"], [autoscaler]
        for group in cluster["workerGroupSpecs"]:
            yield group["groupName"], group["template"]["spec"], []


@pytest.mark.parametrize("folder", [KUBERAY, KUBERAY / "jobs"], ids=lambda folder: folder.name)
def test_rendered_pods_satisfy_the_restricted_profile(folder: Path) -> None:
    found = [pod for document in _render(folder) for pod in _pods(document)]
    assert {name for name, _, _ in found} >= {"head", "cpu", "gpu-spot", "gpu-ondemand", "gpu8"}
    assert ("submitter" if folder.name == "jobs" else "evilm-redis") in {name for name, _, _ in found}
    assert [f"{name}: {problem}" for name, pod, added in found for problem in check_pod(pod, added)] == []


def test_every_job_has_a_submitter_and_a_label() -> None:
    jobs = [document for document in _render(KUBERAY / "jobs") if document["kind"] == "RayJob"]
    assert len(jobs) == len(list((KUBERAY / "jobs").glob("*.yaml"))) - 1
    assert len({job["metadata"]["labels"]["evilm/job"] for job in jobs}) == len(jobs)
    assert all("submitterPodTemplate" in job["spec"] for job in jobs)


def test_one_line_sets_every_image_of_the_cluster(tmp_path: Path) -> None:
    copied = tmp_path / "kuberay"
    shutil.copytree(KUBERAY, copied)
    image = copied / "components" / "image" / "kustomization.yaml"
    image.write_text(image.read_text().replace("newName: registry.example.com/evilm", "newName: mine.example.org/x"))
    documents = [*_render(copied), *_render(copied / "jobs")]
    images = [c["image"] for d in documents for _, pod, _ in _pods(d) for c in containers_of(pod)]
    assert set(images) == {"mine.example.org/x:0.1.0", "redis:7.4"}


def test_rendered_resources_pass_kuberays_schemas(shared_data: Path) -> None:
    for folder in (KUBERAY, KUBERAY / "jobs"):
        for document in _render(folder):
            if document["kind"] in kube.RAY_KINDS:
                schema = kube.strict_schema(shared_data / "kuberay", document["kind"])
                assert list(kube.schema_errors(document, schema)) == [], document["metadata"]["name"]


def test_only_the_autoscaler_has_a_token_of_kubernetes() -> None:
    spec = yaml.safe_load((KUBERAY / "cluster.yaml").read_text())["spec"]
    (mount,) = spec["autoscalerOptions"]["volumeMounts"]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    head = spec["headGroupSpec"]["template"]["spec"]
    (token,) = [volume for volume in head["volumes"] if volume["name"] == mount["name"]]
    assert any("serviceAccountToken" in source for source in token["projected"]["sources"])
    with_token = copy.deepcopy(head)
    with_token["containers"][0]["volumeMounts"].append(mount)
    assert "ray-head: has a token of Kubernetes, which jobs could use" in list(check_pod(with_token))
    accounts = {each["metadata"]["name"] for each in yaml.safe_load_all((KUBERAY / "accounts.yaml").read_text())}
    used = {group["template"]["spec"]["serviceAccountName"] for group in spec["workerGroupSpecs"]}
    assert used == {"evilm-worker"}
    assert {head["serviceAccountName"], *used} < accounts


def test_a_pod_that_satisfies_the_profile_is_accepted() -> None:
    assert list(check_pod(GOOD)) == []
    assert list(check_restricted(GOOD, [{"name": "b"}])) != []  # what an operator adds counts too


@pytest.mark.parametrize(("where", "value", "said"), VIOLATIONS)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_each_violation_of_the_profile_is_reported(
    where: tuple[str | int, ...], value: Any, said: str, kind: str
) -> None:
    pod = copy.deepcopy(GOOD)
    pod["initContainers"] = copy.deepcopy(GOOD["containers"])
    place: Any = pod
    path = [kind if key == "containers" else key for key in where]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    problems = list(check_restricted(pod))
    assert problems
    assert all(problem.startswith("restricted: ") and said in problem for problem in problems)


def test_a_generated_clusters_metrics_and_firewall_are_those_of_a_named_one() -> None:
    labels = {"ray.io/is-ray-node": "yes"}  # on every pod of every cluster; names of jobs' clusters are generated
    monitor, _ = yaml.safe_load_all((KUBERAY / "monitoring.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    ray, *_ = yaml.safe_load_all((KUBERAY / "network.yaml").read_text())
    assert ray["spec"]["podSelector"]["matchLabels"] == labels
    ports = {port["port"] for rule in ray["spec"]["ingress"][1:] for port in rule["ports"]}
    assert ports == {8265, 8080, 44217}  # nothing else from outside of the cluster
