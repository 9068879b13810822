"""Check the Kubernetes files against the schemas of KubeRay's resources and the rules of its operator.

Unknown fields and wrong types are found with the resources' definitions (CRDs), which are part of KubeRay, not of this
repository: name their folder with `--crds FOLDER`. All other checks work without them.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from checks.commands import check_commands, check_files, comments
from checks.image import ray_version
from checks.kustomize import KINDS, check_kustomization, check_network
from checks.pods import check_pod

RAY_KINDS = {"RayCluster": 53, "RayJob": 47}
"""Kinds of KubeRay with the maximum length of their names."""
_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
_RUNTIME_ENV = {"env_vars", "working_dir", "py_modules", "py_executable", "excludes", "pip", "uv", "conda", "config"}
_GPU = "nvidia.com/gpu"
_LOGS = "ray-logs"
"""Name of the volume that the operator mounts in its own containers, such as the autoscaler."""


def check(path: Path, crds: Path | None = None) -> list[str]:
    """Check a file of one or more resources and return one line per problem."""
    text = path.read_text()
    problems = []
    for document in yaml.safe_load_all(text):
        kind = document.get("kind", "?") if isinstance(document, dict) else "?"
        name = document.get("metadata", {}).get("name", "?") if isinstance(document, dict) else "?"
        if kind in KINDS:
            problems += [f"{kind}: {problem}" for problem in check_kustomization(document, path.parent)]
        else:
            problems += [f"{kind} {name}: {problem}" for problem in _document(document, kind, crds)]
    return problems + check_commands(comments(text)) + check_files(text)


def _document(document: Any, kind: str, crds: Path | None) -> Iterator[str]:
    if kind in RAY_KINDS:
        if crds:
            yield from schema_errors(document, strict_schema(crds, kind))
        yield from _name(document, RAY_KINDS[kind])
        yield from _ray_job(document["spec"]) if kind == "RayJob" else _ray_cluster(document["spec"])
    elif kind in ("StatefulSet", "Deployment"):
        template = document["spec"]["template"]
        if crds:  # the same pods as in our cluster, so the same schema
            pod = strict_schema(crds, "RayCluster")["properties"]["spec"]["properties"]["headGroupSpec"]
            yield from schema_errors(template, pod["properties"]["template"])
        labels = document["spec"]["selector"]["matchLabels"]
        if labels.items() - template["metadata"]["labels"].items():
            yield "spec.selector does not select the pods of spec.template"
        yield from check_pod(template["spec"])
    elif kind == "PrometheusRule":
        yield from check_alerts(document["spec"])
    elif kind == "PodMonitor":
        if document["spec"]["selector"] != {"matchLabels": {"ray.io/is-ray-node": "yes"}}:
            yield "spec.selector must be ray.io/is-ray-node: a name does not select clusters that jobs create"
    elif kind == "ServiceAccount":
        if document.get("automountServiceAccountToken") is not False:
            yield "automountServiceAccountToken must be false: jobs could use the account's rights"
    elif kind == "NetworkPolicy":
        yield from check_network(document["spec"])
    elif kind != "Service":
        yield f"kind {kind!r} is not supported by these checks"


def strict(schema: Any) -> Any:
    """Convert a schema of Kubernetes to a JSON schema that rejects unknown fields."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: {field: strict(inner) for field, inner in value.items()} if name == "properties" else strict(value)
        for name, value in schema.items()
        if name != "format"
    }
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "properties" in made:
        if "additionalProperties" not in made and not made.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
        # The server fills in fields with defaults.
        made["required"] = [f for f in made.get("required", []) if "default" not in made["properties"].get(f, {})]
    return made


@lru_cache
def strict_schema(crds: Path, kind: str) -> dict[str, Any]:
    """Build the strict schema of a kind from KubeRay's definition in the folder `crds`."""
    text = (crds / f"ray.io_{kind.lower()}s.yaml").read_text()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def schema_errors(document: Any, schema: dict[str, Any]) -> Iterator[str]:
    """Validate a document against a schema and yield the errors."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(document):
        yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message[:200]}"


def _name(document: dict[str, Any], longest: int) -> Iterator[str]:
    name = document["metadata"]["name"]
    if len(name) > longest or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name must be at most {longest} of a-z, 0-9 and -, and begin with a letter"


def _ray_job(spec: dict[str, Any]) -> Iterator[str]:
    selected = spec.get("clusterSelector")
    if bool(selected) == ("rayClusterSpec" in spec):
        yield "set one of clusterSelector and rayClusterSpec"
    if selected is not None and not selected.get("ray.io/cluster"):
        yield "clusterSelector needs ray.io/cluster"
    if spec.get("submissionMode", _MODES[0]) not in _MODES:
        yield f"submissionMode {spec['submissionMode']!r} is not one of {', '.join(_MODES)}"
    if spec.get("backoffLimit", 0) and (selected or spec.get("submissionMode") == "InteractiveMode"):
        yield "backoffLimit can't be combined with clusterSelector or InteractiveMode"
    if selected and spec.get("submissionMode") == "SidecarMode":
        yield "clusterSelector can't be combined with SidecarMode"
    ends = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and (not ends or selected):
        yield "suspend needs shutdownAfterJobFinishes and can't be combined with clusterSelector"
    if spec.get("ttlSecondsAfterFinished") and not ends:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if ends and (spec.get("deletionStrategy") or {}).get("deletionRules"):
        yield "shutdownAfterJobFinishes and deletionStrategy.deletionRules exclude each other"
    if not selected and not ends and "deletionStrategy" not in spec:
        yield "the job's own cluster is never deleted and costs money: set shutdownAfterJobFinishes"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} must be positive"
    yield from check_runtime_env(yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {})
    if not spec.get("entrypoint"):
        yield "entrypoint is missing"
    else:
        yield from check_commands(spec["entrypoint"])
    if "rayClusterSpec" in spec:
        yield from _ray_cluster(spec["rayClusterSpec"])


def check_runtime_env(environment: dict[str, Any]) -> Iterator[str]:
    """Check the keys, since Ray silently ignores unknown ones, and the types, since non-string values fail the job."""
    for name in set(environment) - _RUNTIME_ENV:
        yield f"runtime env: {name} is unknown, and ignored by Ray; known: {', '.join(sorted(_RUNTIME_ENV))}"
    for name, value in environment.get("env_vars", {}).items():
        if not isinstance(value, str):
            yield f"runtime env: env_vars.{name} = {value!r} must be a string"


def check_alerts(rules: dict[str, Any]) -> Iterator[str]:
    """Check that rules of Prometheus are complete and can be loaded."""
    for rule in [rule for group in rules["groups"] for rule in group["rules"]]:
        for field in {"alert", "expr", "for", "annotations"} ^ set(rule):
            yield f"alert {rule.get('alert')}: {field} is {'unknown' if field in rule else 'missing'}"
        if not re.fullmatch(r"\d+[smhd]", str(rule.get("for"))):
            yield f"alert {rule.get('alert')}: for {rule.get('for')!r} is not a time such as 15m"
        if str(rule.get("expr")).count("(") != str(rule.get("expr")).count(")"):
            yield f"alert {rule.get('alert')}: the brackets of expr do not match"


def check_prometheus(config: dict[str, Any]) -> Iterator[str]:
    """Check that a configuration of Prometheus reads the nodes from the file that Ray maintains."""
    for name in set(config) - {"global", "rule_files", "scrape_configs"}:
        yield f"{name} is unknown"
    files = [name for job in config["scrape_configs"] for sd in job.get("file_sd_configs", []) for name in sd["files"]]
    if files != ["/tmp/ray/prom_metrics_service_discovery.json"]:
        yield f"file_sd_configs reads {files}; Ray writes /tmp/ray/prom_metrics_service_discovery.json"


def _ray_cluster(spec: dict[str, Any]) -> Iterator[str]:
    scales = spec.get("enableInTreeAutoscaling", False)
    options = spec.get("autoscalerOptions", {})
    groups = [("head", spec["headGroupSpec"])] + [(g["groupName"], g) for g in spec.get("workerGroupSpecs", [])]
    if not scales:
        yield "enableInTreeAutoscaling is off: groups never change their size"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    token = spec.get("authOptions", {}).get("mode") == "token"
    if not token:
        yield "authOptions.mode is not token: without tokens anyone can run jobs"
    if spec.get("rayVersion") != ray_version():
        yield f"rayVersion {spec.get('rayVersion')!r} is not {ray_version()}, as in constraints.txt"
    yield from _fault_tolerance(spec)
    if spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'headGroupSpec.rayStartParams.num-cpus must be "0": tasks could overload the head'
    accounts = [group["template"]["spec"].get("serviceAccountName", "default") for _, group in groups]
    if accounts[0] in accounts[1:] or "default" in accounts:
        yield "serviceAccountName: head and workers need accounts of their own; the head's may delete pods"
    autoscaler = {"name": "autoscaler", **{name: options.get(name, {}) for name in ("securityContext", "resources")}}
    for name, group in groups:
        added = [autoscaler] if name == "head" and scales else []
        yield from (f"{name}: {problem}" for problem in check_pod(group["template"]["spec"], added))
        yield from (f"{name}: {problem}" for problem in _group(group, scales, options.get("version") == "v2"))


def _fault_tolerance(spec: dict[str, Any]) -> Iterator[str]:
    kept = spec.get("gcsFaultToleranceOptions")
    head = spec["headGroupSpec"]
    names = {entry["name"] for c in head["template"]["spec"]["containers"] for entry in c.get("env", [])}
    for name in names & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
        yield f"{name} must not be set on the head; use gcsFaultToleranceOptions"
    if kept and kept.get("backend") == "rocksdb" and {"redisAddress", "redisPassword"} & set(kept):
        yield "gcsFaultToleranceOptions: backend rocksdb has no redis settings"
    if kept and kept.get("backend", "redis") == "redis" and ("storage" in kept or not kept.get("redisAddress")):
        yield "gcsFaultToleranceOptions: backend redis needs redisAddress and has no storage"
    if "redis-password" in head.get("rayStartParams", {}):
        yield "rayStartParams.redis-password must not be set; use gcsFaultToleranceOptions.redisPassword"


def _group(group: dict[str, Any], scales: bool, v2: bool) -> Iterator[str]:
    pod, params = group["template"]["spec"], group.get("rayStartParams", {})
    low, high = group.get("minReplicas", 0), group.get("maxReplicas")
    if "groupName" in group:
        if high is None or low < 0 or low > high:
            yield f"minReplicas {low} and maxReplicas {high} are not a valid range"
        if not low <= group.get("replicas", 0) <= (high or 0):
            yield f"replicas {group.get('replicas')} is not between minReplicas and maxReplicas"
        if pod.get("terminationGracePeriodSeconds", 30) < 60:
            yield "terminationGracePeriodSeconds must be 60 or more: Ray drains for 30 s before it ends"
        if (group.get("priority") or group.get("idleTimeoutSeconds") is not None) and not (scales and v2):
            yield "priority and idleTimeoutSeconds need autoscalerOptions.version v2"
        if group.get("suspend") and scales:
            yield "suspend can't be combined with autoscaling"
    if scales and v2 and pod.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy must be Never, or unset, with the autoscaler v2"
    if group.get("resources") and set(params) & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield "resources are set both in rayStartParams and in the group"
    if "labels" in params:
        yield "rayStartParams.labels is not supported; use the group's labels"
    for text in [params["resources"]] if "resources" in params else []:
        if not isinstance(json.loads(json.loads(text)), dict):
            yield "rayStartParams.resources must be JSON in a string in a string"
    yield from _containers(pod)


def _containers(pod: dict[str, Any]) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount.get("mountPath") == "/tmp/ray" and mount["name"] != _LOGS:
                yield f"{container['name']}: the volume of /tmp/ray must be called {_LOGS}: the autoscaler needs it"
            if mount["name"] not in volumes:
                yield f"{container['name']}: volume {mount['name']} does not exist"
    if any(_GPU in c.get("resources", {}).get("limits", {}) for c in pod["containers"]) and not any(
        toleration.get("key") == _GPU for toleration in pod.get("tolerations", [])
    ):
        yield f"GPU nodes are tainted: a toleration of {_GPU} is missing"
