"""Compare an AWS account's quotas of vCPUs with what a cluster file can start."""

import math
from collections import Counter
from typing import Any

_STANDARD = "standard (A, C, D, H, I, M, R, T, Z)"
_QUOTAS = {
    ("standard", "on-demand"): ("L-1216C47A", f"{_STANDARD} on-demand"),
    ("standard", "spot"): ("L-34B43A08", f"{_STANDARD} spot"),
    ("gvt", "on-demand"): ("L-DB2E81BA", "G and VT on-demand"),
    ("gvt", "spot"): ("L-3819A6DF", "G and VT spot"),
    ("p", "on-demand"): ("L-417A185B", "P on-demand"),
    ("p", "spot"): ("L-7212CCBC", "P2, P3 and P4 spot"),
    ("p5", "spot"): ("L-C4BD4855", "P5 spot"),
}
"""Code and name of each quota by family and market; Amazon counts all of them in vCPUs."""


def _family(size: str, spot: bool) -> str:
    """Return the family whose quota a machine type counts to; '' for families that we do not know."""
    if size.startswith(("g", "vt")):
        return "gvt"
    if size.startswith("p"):
        return "p5" if spot and size.startswith("p5") else "p"
    return "standard" if size[0] in "acdhimrtz" and not size.startswith(("inf", "trn", "dl", "hpc")) else ""


def node_counts(config: dict[str, Any]) -> dict[str, int]:
    """Return the greatest number of nodes by node type, without types that the file can't start."""
    head, limit = config["head_node_type"], config["max_workers"]
    types = config["available_node_types"]
    most = {name: 1 if name == head else min(types[name].get("max_workers", 0), limit) for name in types}
    return {name: count for name, count in most.items() if count}


def machine_types(config: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the head's machine type, and those of the workers that the file can start."""
    head = config["head_node_type"]
    kinds = {name: config["available_node_types"][name]["node_config"]["InstanceType"] for name in node_counts(config)}
    return kinds[head], sorted({kind for name, kind in kinds.items() if name != head})


def needed(config: dict[str, Any], vcpus: dict[str, int]) -> dict[tuple[str, str], int]:
    """Sum up the vCPUs per family and market; spot nodes also count as on-demand, to which they fall back.

    Args:
        config: cluster file for `ray up`.
        vcpus: vCPUs by machine type.
    """
    total: Counter[tuple[str, str]] = Counter()
    for name, count in node_counts(config).items():
        node = config["available_node_types"][name]["node_config"]
        size = node["InstanceType"]
        for market in ("spot", "on-demand") if "InstanceMarketOptions" in node else ("on-demand",):
            total[_family(size, market == "spot"), market] += count * vcpus[size]
    return {key: value for key, value in total.items() if key in _QUOTAS}


def sizes(ec2: Any, config: dict[str, Any]) -> dict[str, int]:
    """Ask EC2 for the vCPUs of the file's machine types."""
    head, workers = machine_types(config)
    described = ec2.describe_instance_types(InstanceTypes=sorted({head, *workers}))["InstanceTypes"]
    return {entry["InstanceType"]: entry["VCpuInfo"]["DefaultVCpus"] for entry in described}


def check(ec2: Any, quotas: Any, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the account's quotas with the needs of a file.

    Args:
        ec2: client of EC2.
        quotas: client of Service Quotas.
        config: cluster file for `ray up`.

    Returns:
        Per quota its name, code, vCPUs needed, vCPUs granted (None if unknown) and if it is enough.
    """
    lines = []
    for key, vcpus in needed(config, sizes(ec2, config)).items():
        code, name = _QUOTAS[key]
        granted = _granted(quotas, code)
        enough = granted is None or granted >= vcpus
        lines.append({"quota": name, "code": code, "needed": vcpus, "granted": granted, "enough": enough})
    return lines


def _granted(quotas: Any, code: str) -> int | None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return math.floor(quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
    except (ClientError, BotoCoreError):  # no permission, or no endpoint: the quota is unknown, not zero
        return None


def describe(line: dict[str, Any]) -> str:
    """Format one quota for a person."""
    if line["granted"] is None:
        return f"quota {line['quota']}: {line['needed']} vCPUs are needed; cannot read what is granted"
    verdict = (
        "enough" if line["enough"] else f"TOO LITTLE: request {line['code']} in Service Quotas, or lower max_workers"
    )
    return f"quota {line['quota']}: {line['needed']} vCPUs are needed, {line['granted']} are granted: {verdict}"
