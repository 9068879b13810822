"""Numerical precision: bf16 autocast where the hardware has units for it, and the same sums in each run."""

from typing import Any

import torch

from evilm.errors import ConfigError


def has_bf16(device: torch.device) -> bool:
    """Return whether bf16 is fast: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX. On others it is 10x slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: str, device: torch.device) -> Any:
    """Return the autocast context of a training.

    Args:
        precision: fp32 or bf16, as `TrainConfig.with_precision` leaves it.
        device: where it computes.

    Raises:
        ConfigError: bf16 on a GPU without units for it.
    """
    if precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise ConfigError(
            f"cluster.precision = bf16: {torch.cuda.get_device_name(device)} has no bf16 units; use fp32, or GPUs from "
            "Ampere on"
        )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def make_deterministic() -> None:
    """Sum in the same order in every run; on CPU it costs nothing that was measurable, on GPUs it may.

    Without it the gradient of an indexed look-up (a codebook, a table of words) is added up by several threads in
    whatever order they come, and two runs part after some dozen steps.
    """
    torch.use_deterministic_algorithms(True)
    # A debugging aid that only costs time; the module fakes the attribute, so type checkers can't see it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
