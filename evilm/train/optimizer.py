"""The optimizer, its learning rate, the moving average of the weights, and the numerical precision of a training."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from evilm.config.training import OptimConfig
from evilm.errors import ConfigError

LR_SCALE = "lr_scale"
"""Key of a parameter group: the factor of its learning rate."""


def make_optimizer(
    module: nn.Module, settings: OptimConfig, fused: bool = False, lr_scale: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.AdamW:
    """Create AdamW without weight decay on vectors: biases, normalisations, LayerScale. Paper: Sec. 4.1.

    Args:
        module: its parameters that need a gradient are trained.
        lr_scale: returns the factor of the learning rate of a parameter, by its name.
    """
    named = [(lr_scale(name), p) for name, p in module.named_parameters() if p.requires_grad]
    groups = []
    for scale in sorted({scale for scale, _ in named}, reverse=True) or [1.0]:
        parameters = [p for own, p in named if own == scale]
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay, LR_SCALE: scale},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, LR_SCALE: scale},
        ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=fused or None)


def learning_rate(settings: OptimConfig, step: int, num_steps: int) -> float:
    """Compute the learning rate: linear warm-up, then cosine decay to `final_lr_ratio`; it depends only on the step."""
    warmup = round(settings.warmup_ratio * num_steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, num_steps - warmup)
    low = settings.final_lr_ratio
    return settings.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class EMA:
    """An exponential moving average of a module's weights; its buffers are those of the module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.averaged = AveragedModel(module)
        self._decay = decay

    @property
    def module(self) -> nn.Module:
        """Return the module with averaged weights."""
        return cast(nn.Module, self.averaged.module)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after a step: m <- decay m + (1 - decay) w, and w itself at the first.

        As `AveragedModel.update_parameters` does, which copies its counter to the device in each step and waits.
        """
        ours: Any = list(self.module.parameters())
        theirs: Any = list(module.parameters())
        if int(self.averaged.n_averaged) == 0:  # a tensor on the CPU, wherever the weights are
            torch._foreach_copy_(ours, theirs)  # pyright: ignore[reportPrivateImportUsage]
        else:
            torch._foreach_lerp_(ours, theirs, 1 - self._decay)  # pyright: ignore[reportPrivateImportUsage]
        for kept, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(buffer)
        self.averaged.n_averaged += 1


def has_bf16(device: torch.device) -> bool:
    """Return whether bf16 is fast: GPUs from Ampere on, CPUs with AVX512-BF16 or AMX. On others it is 10x slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of a training.

    `precision` is fp32 or bf16, as `TrainConfig.with_precision` leaves it.

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
