"""Check the machines in files for `ray up`: fields that their cloud knows, sizes, disks and zones."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from checks import Remark
from checks.cost import machine
from checks.machines import size_of

MIN_DISK_GIB = 100
"""Machine image (up to 40 GiB), node image (15, and as much while it is unpacked), frames and what Ray spills."""
_GCP_KEYS = {
    "machineType": str, "disks": list, "scheduling": dict, "serviceAccounts": list, "tags": dict, "metadata": dict,
    "labels": dict, "networkInterfaces": list, "guestAccelerators": list,
}  # fmt: skip
_GCP_SCHEDULING = {"provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart"}


def cloud(config: dict[str, Any]) -> str:
    """Return aws, gcp or azure; our own provider is AWS's."""
    kind = str(config["provider"].get("type"))
    return "aws" if kind == "external" else kind


def check_node(config: dict[str, Any], name: str) -> Iterator[str]:
    """Check a node type: fields that its cloud knows, resources that its machine has, space on its disk."""
    kind, settings = cloud(config), config["available_node_types"][name]
    node = settings["node_config"]
    if kind == "aws":
        yield from _aws_node(node)
    elif kind == "gcp":
        yield from _gcp_node(node)
    elif kind == "azure":
        yield from _azure_node(node)
    else:
        return  # reported as an unknown provider
    if not node.get("guestAccelerators"):  # GPUs that a machine of Google does not have by itself
        yield from _resources(kind, machine(node), settings["resources"], head=name == config["head_node_type"])
    yield from _disk(kind, node)


def _resources(kind: str, size: str, resources: dict[str, Any], head: bool) -> Iterator[str]:
    """Compare a node type's resources with its machine: Ray would place tasks on CPUs and GPUs that do not exist."""
    cpus, gpus = size_of(kind, size)
    if cpus is not None and resources.get("CPU", 0) > cpus:
        yield f"resources.CPU {resources['CPU']} is more than the {cpus} of a {size}"
    if gpus is not None and resources.get("GPU", 0) > gpus:
        yield f"resources.GPU {resources['GPU']} is more than the {gpus} of a {size}"
    if gpus is not None and resources.get("GPU", 0) < gpus and not head:
        yield Remark(f"resources.GPU {resources.get('GPU', 0)} leaves GPUs of a {size} unused, which has {gpus}")


def _disk(kind: str, node: dict[str, Any]) -> Iterator[str]:
    """Check the size of the first disk, which holds the image, temporary frames and what Ray spills."""
    if kind == "aws":
        place = "BlockDeviceMappings.Ebs.VolumeSize"
        gib = next((disk.get("Ebs", {}).get("VolumeSize") for disk in node.get("BlockDeviceMappings", [])), None)
    elif kind == "gcp":
        place = "disks.initializeParams.diskSizeGb"
        disks = node["disks"] if isinstance(node.get("disks"), list) else []
        gib = next((disk.get("initializeParams", {}).get("diskSizeGb") for disk in disks), None)
    else:
        place, gib = "azure_arm_parameters.osDiskSize", node.get("azure_arm_parameters", {}).get("osDiskSize")
    if gib is None:
        yield f"{place} is missing: the machine image's own size is too small"
    elif isinstance(gib, int) and gib < MIN_DISK_GIB:
        yield f"{place} {gib} is too small: machine image, node image and frames need {MIN_DISK_GIB} GiB"


def check_zones(provider: dict[str, Any], kind: str) -> Iterator[str]:
    """Check that the zones are in the region."""
    if kind not in ("aws", "gcp", "azure"):
        return  # reported as an unknown provider
    zones = [zone.strip() for zone in str(provider.get("availability_zone", "")).split(",") if zone.strip()]
    region = str(provider.get("region"))
    for zone in zones:
        if kind == "azure":
            if zone not in ("auto", "none", "1", "2", "3"):
                yield f"provider.availability_zone {zone!r} is not auto, none, 1, 2 or 3"
        elif not re.fullmatch(re.escape(region) + (r"(-[a-z]+-\d+)?[a-z]" if kind == "aws" else "-[a-z]"), zone):
            yield f"provider.availability_zone {zone!r} is not in the region {region}"


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
    if node.get("InstanceInitiatedShutdownBehavior") != "terminate" or "pgrep -x raylet" not in node.get(
        "UserData", ""
    ):
        yield Remark("UserData and InstanceInitiatedShutdownBehavior do not end a machine whose set-up failed")
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
