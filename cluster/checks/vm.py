"""Check files for `ray up`: Ray's own schema first, then errors that it accepts but that break clusters."""

import copy
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from checks import Remark, prefixed
from checks.commands import check_commands, check_files, comments
from checks.cost import check_cost
from checks.image import INSTALLED, ray_version
from checks.vm_nodes import check_node, check_zones, cloud

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


def check(path: Path) -> list[str]:
    """Check a file for `ray up` and return one line per problem."""
    text = path.read_text()
    config = yaml.safe_load(text)
    problems = list(_missing(config)) or list(_schema(config))
    if problems:
        return problems  # the other checks need these keys
    types, head = config["available_node_types"], config["head_node_type"]
    problems += [*_provider(config["provider"]), *_nodes(config, types, head), *_commands(config, types)]
    problems += check_zones(config["provider"], cloud(config))
    for name in types:
        problems += [prefixed(name, problem) for problem in check_node(config, name)]
    return problems + check_cost(text, types, head) + check_commands(comments(text)) + check_files(text)


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
        yield Remark("provider.cache_stopped_nodes: stopped nodes keep their disks, which cost money; use false")
    if provider["type"] == "external" and provider.get("module") != "evilm.cloud.SpotFirst":
        yield f"provider.module {provider.get('module')!r} is not evilm.cloud.SpotFirst"


def _nodes(config: dict[str, Any], types: dict[str, Any], head: str) -> Iterator[str]:
    workers = {name: settings for name, settings in types.items() if name != head}
    if types[head]["resources"].get("CPU") != 0 or types[head]["resources"].get("GPU"):
        yield f"{head}: the head must offer no CPU and no GPU: tasks could overload it"
    if is_spot(types[head]["node_config"]):
        yield Remark(f"{head}: preemption of a spot head ends the whole cluster")
    for name, settings in workers.items():
        low, high = settings.get("min_workers", 0), settings.get("max_workers", 0)
        if low > high:
            yield f"{name}: min_workers {low} is more than max_workers {high}"
        if low:
            yield Remark(f"{name}: min_workers {low} nodes cost money all the time")
        if high > config["max_workers"]:
            yield f"{name}: max_workers {high} is more than the cluster's {config['max_workers']}"
        if not settings["resources"].get("CPU"):
            yield f"{name}: resources without CPU are never requested"
    if config["max_workers"] < sum(settings.get("max_workers", 0) for settings in workers.values()):
        yield Remark("max_workers is less than the groups' together: one could starve the others")
    gpu = [settings for settings in workers.values() if settings["resources"].get("GPU")]
    if not gpu:
        yield Remark("no node type offers a GPU: trainings run on CPUs; resources: {GPU: 1} is missing")
    if gpu and not any(is_spot(settings["node_config"]) for settings in gpu):
        yield Remark("no GPU node type is spot, which costs less than half")
    falls_back = config["provider"]["type"] == "external"
    if gpu and not falls_back and all(is_spot(settings["node_config"]) for settings in gpu):
        yield Remark("no GPU node type is on-demand, needed without spot capacity")
    for settings in gpu:
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
    gpus = any(settings["resources"].get("GPU") for settings in types.values())
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
    if gpus and "--env NVIDIA_VISIBLE_DEVICES=all" not in docker.get("run_options", []):
        yield "docker.run_options: --env NVIDIA_VISIBLE_DEVICES=all is missing; containers would not see their GPUs"
    if "spot_watch.py" in worker and not re.search(r"until python \S*spot_watch\.py [^;]*; do sleep \d+; done", worker):
        yield "worker_start_ray_commands: spot_watch.py is not started again: use until python …; do sleep 5; done"
    yield from _token_file(Path(str(config["file_mounts"].get("/home/ray/.ray/auth_token", ""))).expanduser())
    for name, settings in types.items():
        yield from _before_docker(name, settings, config)
    for target, source in config["file_mounts"].items():
        if not target.startswith("/"):
            yield f"file_mounts: {target} must be a path on the node"
        if not str(source).startswith("~") and not Path(source).exists():
            yield f"file_mounts: {source} does not exist"


def _token_file(path: Path) -> Iterator[str]:
    """Check that only its owner can read the token; the nodes' copies have the same mode."""
    if path.is_file() and path.stat().st_mode & 0o077:
        yield f"{path} can be read by others: chmod 600 {path}"


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
