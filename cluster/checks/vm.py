"""Check files for `ray up`: Ray's own schema first, then errors that it accepts but that break clusters."""

import copy
import json
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from checks.commands import check_commands, check_files, comments
from checks.cost import check_cost
from checks.image import INSTALLED, ray_version

# Ray fills in missing keys with values for other software, some of which are wrong for us.
_SPELLED_OUT = (
    *("cluster_name", "max_workers", "idle_timeout_minutes", "docker", "provider", "auth", "head_node_type"),
    *("available_node_types", "file_mounts", "initialization_commands", "setup_commands", "head_setup_commands"),
    *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude"),
)
_PROVIDER_KEYS = {
    "aws": {"region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "key_pair"},
    "gcp": {"region", "availability_zone", "project_id", "cache_stopped_nodes", "use_internal_ips"},
    "azure": {"location", "resource_group", "subscription_id", "availability_zone", "cache_stopped_nodes", "msi_name"}
    | {"msi_resource_group", "use_internal_ips", "use_external_head_ip", "subnet_mask", "unique_id"},
}
_PROVIDER_NEEDS = {"aws": {"region"}, "gcp": {"region", "project_id"}, "azure": {"location", "resource_group"}}
_GCP_KEYS = {
    "machineType": str, "disks": list, "scheduling": dict, "serviceAccounts": list, "tags": dict, "metadata": dict,
    "labels": dict, "networkInterfaces": list, "guestAccelerators": list,
}  # fmt: skip
_GCP_SCHEDULING = {"provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart"}


def check(path: Path) -> list[str]:
    """Check a file for `ray up` and return one line per problem."""
    text = path.read_text()
    config = yaml.safe_load(text)
    problems = list(_missing(config)) or list(_schema(config))
    if problems:
        return problems  # the other checks need these keys
    types, head = config["available_node_types"], config["head_node_type"]
    problems += [*_provider(config["provider"]), *_nodes(config, types, head), *_commands(config, types)]
    for name, settings in types.items():
        problems += [f"{name}: {problem}" for problem in _node_config(cloud(config), settings["node_config"])]
    return problems + check_cost(text, types, head) + check_commands(comments(text)) + check_files(text)


def cloud(config: dict[str, Any]) -> str:
    """Return aws, gcp or azure; our own provider is AWS's."""
    kind = str(config["provider"].get("type"))
    return "aws" if kind == "external" else kind


def _missing(config: Any) -> Iterator[str]:
    if not isinstance(config, dict):
        yield "not a mapping"
        return
    for name in _SPELLED_OUT:
        if name not in config:
            yield f"{name} is missing; Ray would fill in its own"


def _schema(config: dict[str, Any]) -> Iterator[str]:
    """Run Ray's own preparation and schema check."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"Ray's schema: {where + ': ' if where else ''}{error.message}"
    except Exception as error:  # Ray raises many types for errors outside of its schema, e.g. TypeError
        yield f"Ray: {' '.join(str(error).split())[:300]}"


def _provider(provider: dict[str, Any]) -> Iterator[str]:
    kind = cloud({"provider": provider})
    if kind not in _PROVIDER_KEYS:
        yield f"provider.type {kind!r} is not supported: use {', '.join(_PROVIDER_KEYS)}"
        return
    own = {"type", *({"module"} if provider["type"] == "external" else set())}
    for name in set(provider) - _PROVIDER_KEYS[kind] - own:
        yield f"provider.{name}: Ray ignores it; known: {', '.join(sorted(_PROVIDER_KEYS[kind]))}"
    for name in _PROVIDER_NEEDS[kind] - set(provider):
        yield f"provider.{name} is missing"
    if provider.get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes: stopped nodes keep their disks, which cost money; use false"
    if provider["type"] == "external" and provider.get("module") != "evilm.cloud.SpotFirst":
        yield f"provider.module {provider.get('module')!r} is not evilm.cloud.SpotFirst"


def _nodes(config: dict[str, Any], types: dict[str, Any], head: str) -> Iterator[str]:
    workers = {name: settings for name, settings in types.items() if name != head}
    if types[head]["resources"].get("CPU") != 0 or types[head]["resources"].get("GPU"):
        yield f"{head}: the head must offer no CPU and no GPU: tasks could overload it"
    if is_spot(types[head]["node_config"]):
        yield f"{head}: preemption of a spot head ends the whole cluster"
    for name, settings in workers.items():
        low, high = settings.get("min_workers", 0), settings.get("max_workers", 0)
        if low > high:
            yield f"{name}: min_workers {low} is more than max_workers {high}"
        if low:
            yield f"{name}: min_workers {low} nodes cost money all the time"
        if high > config["max_workers"]:
            yield f"{name}: max_workers {high} is more than the cluster's {config['max_workers']}"
        if not settings["resources"].get("CPU"):
            yield f"{name}: resources without CPU are never requested"
    if config["max_workers"] < sum(settings.get("max_workers", 0) for settings in workers.values()):
        yield "max_workers is less than the groups' together: one could starve the others"
    gpu = [settings for settings in workers.values() if settings["resources"].get("GPU")]
    if not gpu:
        yield "no node type offers a GPU; resources: {GPU: 1} is missing"
    if not any(is_spot(settings["node_config"]) for settings in gpu):
        yield "no GPU node type is spot"
    falls_back = config["provider"]["type"] == "external"
    if not falls_back and all(is_spot(settings["node_config"]) for settings in gpu):
        yield "no GPU node type is on-demand, needed without spot capacity"
    for settings in gpu:
        if not settings.get("docker", {}).get("worker_image", "").endswith("-gpu"):
            yield "a GPU node type does not use the image for GPUs"
        if "torch.cuda.is_available()" not in " ".join(settings.get("worker_setup_commands", [])):
            yield "a GPU node type's worker_setup_commands do not check that torch can use the GPU"


def is_spot(node_config: dict[str, Any]) -> bool:
    """Check if a node may be preempted."""
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    model = node_config.get("scheduling", {})
    azure = node_config.get("azure_arm_parameters", {}).get("priority")
    return market == "spot" or azure == "Spot" or (isinstance(model, dict) and model.get("provisioningModel") == "SPOT")


def _commands(config: dict[str, Any], types: dict[str, Any]) -> Iterator[str]:
    docker = config["docker"]
    if not docker.get("image"):
        yield "docker.image is missing: without it the autoscaler never starts a worker, even with worker_image"
    own = [settings["worker_setup_commands"] for settings in types.values() if "worker_setup_commands" in settings]
    if any(
        f"ray.__version__ == '{ray_version()}'" not in " ".join(commands)
        for commands in [config["setup_commands"], *own]
    ):
        yield f"setup_commands do not check that ray.__version__ == '{ray_version()}', as in constraints.txt"
    if any(INSTALLED not in " ".join(commands) for commands in [config["setup_commands"], *own]):
        yield f"setup_commands do not check {INSTALLED}: an image with an empty package would pass"
    head, worker = " ".join(config["head_start_ray_commands"]), " ".join(config["worker_start_ray_commands"])
    if "--autoscaling-config" not in head:
        yield "head_start_ray_commands: without --autoscaling-config no node is ever started"
    if "--dashboard-host=127.0.0.1" not in head:
        yield "head_start_ray_commands: --dashboard-host=127.0.0.1 keeps the dashboard, which runs anything, to tunnels"
    if "--address=$RAY_HEAD_IP" not in worker:
        yield "worker_start_ray_commands: --address=$RAY_HEAD_IP:6379 is missing"
    if "--env RAY_AUTH_MODE=token" not in docker.get("run_options", []):
        yield "docker.run_options: --env RAY_AUTH_MODE=token is missing; without tokens anyone can run jobs"
    if "/home/ray/.ray/auth_token" not in config["file_mounts"]:
        yield "file_mounts: /home/ray/.ray/auth_token is missing; with RAY_AUTH_MODE=token Ray would not start"
    for name, settings in types.items():
        yield from _before_docker(name, settings, config)
    for target, source in config["file_mounts"].items():
        if not target.startswith("/"):
            yield f"file_mounts: {target} must be a path on the node"
        if not str(source).startswith("~") and not Path(source).exists():
            yield f"file_mounts: {source} does not exist"


def _before_docker(name: str, settings: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """Check the commands that a node runs before its container starts."""
    told = " ".join(settings.get("initialization_commands", config["initialization_commands"]))
    image = settings.get("docker", {}).get("worker_image") or config["docker"].get("image", "")
    if "/" in image and not re.search(r"\b(docker login|acr login|configure-docker)\b", told):
        yield f"{name}: initialization_commands do not log in to the registry of {image}"
    items = settings["node_config"].get("metadata", {}).get("items", [])
    installs = any(item.get("key") == "install-nvidia-driver" for item in items)
    if installs and "until nvidia-smi" not in told:
        yield f"{name}: initialization_commands do not wait until nvidia-smi runs; the driver is still being installed"
    if config["provider"]["type"] == "azure" and "usermod -aG docker" not in told:
        yield f"{name}: initialization_commands do not put the user into the group docker"


def _node_config(kind: str, node: dict[str, Any]) -> Iterator[str]:
    if kind == "aws":
        yield from _aws_node(node)
    elif kind == "gcp":
        yield from _gcp_node(node)
    elif kind == "azure":
        yield from _azure_node(node)


def _aws_node(node: dict[str, Any]) -> Iterator[str]:
    """Check the request that starts the node against Amazon's own description."""
    from botocore.validate import ParamValidator

    shape = _run_instances()
    request = {name: value for name, value in node.items() if name != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        yield " ".join(report.generate_report().split())
        return
    yield from _enums(request, shape, "")
    for name in ("InstanceType", "ImageId", "SecurityGroupIds", "IamInstanceProfile"):
        if name not in node:
            yield f"{name} is missing; Ray would choose one"
    if not re.fullmatch(r"ami-[0-9a-f]{8,17}", str(node.get("ImageId"))):
        yield f"ImageId {node.get('ImageId')!r} is not a machine image"
    if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
        yield "MetadataOptions.HttpTokens must be required, so that pages fetched by a job can't read credentials"


@lru_cache
def _run_instances() -> Any:
    """Load Amazon's description of a request for nodes."""
    import botocore.session

    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _enums(value: Any, shape: Any, where: str) -> Iterator[str]:
    """Find values that Amazon's description does not list."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from _enums(inner, shape.members[name], f"{where}.{name}".strip("."))
    elif shape.type_name == "list":
        for inner in value:
            yield from _enums(inner, shape.member, where)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{where} = {value!r} is not known to EC2"


def _gcp_node(node: dict[str, Any]) -> Iterator[str]:
    for name, value in node.items():
        if name not in _GCP_KEYS:
            yield f"{name} is not a known field of an instance: {', '.join(_GCP_KEYS)}"
        elif not isinstance(value, _GCP_KEYS[name]):
            yield f"{name} must be a {'mapping' if _GCP_KEYS[name] is dict else _GCP_KEYS[name].__name__}"
    scheduling = node.get("scheduling", {})
    for name in set(scheduling) - _GCP_SCHEDULING if isinstance(scheduling, dict) else ():
        yield f"scheduling.{name} is not a known field: {', '.join(sorted(_GCP_SCHEDULING))}"
    for name in ("machineType", "disks", "serviceAccounts"):
        if name not in node:
            yield f"{name} is missing"
    if str(node.get("machineType")).startswith(("g2-", "a2-", "a3-")) and (
        not isinstance(scheduling, dict) or scheduling.get("onHostMaintenance") != "TERMINATE"
    ):
        yield "scheduling.onHostMaintenance must be TERMINATE on a machine with a GPU"


def _azure_node(node: dict[str, Any]) -> Iterator[str]:
    """Check that the parameters exist in Ray's own template of a machine."""
    import ray.autoscaler._private._azure as azure

    template = json.loads((Path(str(azure.__file__)).parent / "azure-vm-template.json").read_text())["parameters"]
    kinds = {"string": str, "int": int, "object": dict, "bool": bool, "array": list}
    for name in set(node) - {"azure_arm_parameters", "tags"}:
        yield f"{name}: Ray ignores it; settings of the machine go below azure_arm_parameters"
    for name, value in node.get("azure_arm_parameters", {}).items():
        if name != "availability_zone" and name not in template:
            yield f"azure_arm_parameters.{name} is not a parameter of Ray's template: {', '.join(sorted(template))}"
        elif name in template and not isinstance(value, kinds.get(template[name]["type"], object)):
            yield f"azure_arm_parameters.{name} must be of type {template[name]['type']}"
    if "vmSize" not in node.get("azure_arm_parameters", {}):
        yield "azure_arm_parameters.vmSize is missing"
