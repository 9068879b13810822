"""Know the CPUs and GPUs of the clouds' machine types without asking the clouds."""

import re

_AWS_GPUS: dict[str, dict[int, int]] = {
    "g4dn": {12: 4},
    **{family: {12: 4, 24: 4, 48: 8} for family in ("g5", "g6", "g6e")},
    "gr6": {},
    "g5g": {16: 2},
    "p3": {8: 4, 16: 8},
    "p3dn": {24: 8},
    **{family: {24: 8} for family in ("p4d", "p4de")},
    **{family: {48: 8} for family in ("p5", "p5e", "p5en")},
}
"""GPUs by family and multiple of xlarge, where it is not 1."""
_AWS_OTHERS = (
    *(
        "g4ad.",
        "g6f.",
        "gr6f.",
        "g2.",
        "g3.",
        "g3s.",
        "p2.",
        "vt",
        "inf",
        "trn",
        "dl",
        "f1.",
        "f2.",
        "hpc",
        "mac",
        "u-",
        "u7",
    ),
    *("c1.", "c4.", "cc", "cr1.", "d2.", "hs1.", "m1.", "m2."),
)
"""Families of other accelerators, or whose sizes do not follow the rule."""
_GCP_GPUS = {"g2-standard": {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}}
_AZURE_GPUS = {"as_T4": {4: 1, 8: 1, 16: 1, 64: 4}, "ads_A100": {24: 1, 48: 2, 96: 4}, "ads_H100": {40: 1, 80: 2}}


def size_of(cloud: str, size: str) -> tuple[int | None, int | None]:
    """Return the vCPUs and NVIDIA GPUs of a machine type; None for what is not known."""
    return {"aws": _aws, "gcp": _gcp, "azure": _azure}[cloud](size)


def _aws(size: str) -> tuple[int | None, int | None]:
    found = re.fullmatch(r"([a-z][a-z0-9-]*)\.(\d*)xlarge", size)
    if not found or size.startswith(_AWS_OTHERS):
        return None, None
    family, times = found[1], int(found[2] or 1)
    if family in _AWS_GPUS:
        return 4 * times, _AWS_GPUS[family].get(times, 1)
    return 4 * times, None if family.startswith(("g", "p")) else 0


def _gcp(size: str) -> tuple[int | None, int | None]:
    found = re.fullmatch(r"([a-z]\w*-[a-z]+)-(\d+)(g?)", size)
    if not found:
        return None, None
    family, number = found[1], int(found[2])
    if found[3]:  # a2-highgpu-1g: the number of GPUs
        return None, number
    return number, _GCP_GPUS[family].get(number) if family in _GCP_GPUS else 0


def _azure(size: str) -> tuple[int | None, int | None]:
    found = re.fullmatch(r"Standard_([A-Z]+)(\d+)(?:-\d+)?(\w*)", size)
    if not found:
        return None, None
    family, cpus, rest = found[1], int(found[2]), found[3]
    if not family.startswith("N"):
        return cpus, 0
    known = next((gpus for name, gpus in _AZURE_GPUS.items() if rest.startswith(name)), {})
    return cpus, known.get(cpus)
