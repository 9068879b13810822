"""The optimizer, its learning rate, and the exponential moving average of the weights."""

import math
from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from evilm.config.training import OptimConfig


def make_optimizer(module: nn.Module, settings: OptimConfig, fused: bool = False) -> torch.optim.AdamW:
    """AdamW without weight decay on vectors: biases, normalisations, LayerScale. Paper: Sec. 4.1."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=fused or None)


def learning_rate(settings: OptimConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then cosine decay to `final_lr_ratio`; a function of the step alone."""
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
        """The module with averaged weights."""
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
