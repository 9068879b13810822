"""Check kustomizations: all files exist, all files of a folder are included, and images and patches have a target."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from checks.pods import check_pod, containers_of

KINDS = ("Kustomization", "Component")


def check_kustomization(document: dict[str, Any], folder: Path) -> Iterator[str]:
    """Check a kustomization in a folder."""
    included = document.get("resources", [])
    for name in included:
        if not (folder / name).is_file():
            yield f"resources: {name} does not exist"
    for name in document.get("components", []):
        if not (folder / name / "kustomization.yaml").is_file():
            yield f"components: {name} has no kustomization.yaml"
    if folder.name == "jobs":
        for path in sorted(folder.glob("*.yaml")):
            if path.name not in {*included, "kustomization.yaml"}:
                yield f"resources: {path.name} is not included"
    for image in document.get("images", []):
        if not {"newName", "newTag"} <= set(image) or str(image.get("newTag", "")) == "latest":
            yield f"images: {image.get('name')} needs newName and a newTag other than latest"
    for patch in document.get("patches", []):
        yield from _submitter(yaml.safe_load(patch["patch"]), patch.get("target", {}))


def _submitter(patch: dict[str, Any], target: dict[str, Any]) -> Iterator[str]:
    """Check the pod with which a patch replaces the operator's for submitting jobs."""
    if target.get("kind") != "RayJob":
        yield f"patches: target.kind {target.get('kind')!r} is not RayJob"
    template = patch["spec"]["submitterPodTemplate"]
    pod = template["spec"]
    yield from (f"submitter: {problem}" for problem in check_pod(pod))
    if pod.get("restartPolicy") != "Never":
        yield "submitter: restartPolicy must be Never: the operator counts the attempts"
    if any("command" in container for container in containers_of(pod)):
        yield "submitter: command must not be set; the operator sets it"


def check_network(spec: dict[str, Any]) -> Iterator[str]:
    """Check that a network policy admits nobody by omission."""
    if "Ingress" not in spec.get("policyTypes", []):
        yield "policyTypes has no Ingress: everybody may connect"
    if not spec.get("podSelector"):
        yield "podSelector selects all pods of the namespace, including those of others"
    for rule in spec.get("ingress", []):
        if not rule.get("from"):
            yield "an ingress rule without from admits everybody"
        for peer in rule.get("from", []):
            if not peer.get("podSelector"):
                yield "from has no podSelector: whole namespaces or networks may connect"
