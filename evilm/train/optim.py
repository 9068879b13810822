"""The optimizer, its learning rate, and the running mean of the weights."""

import math
from typing import cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evilm.config.train import OptimConfig


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


class Mean:
    """A running mean of a module's weights; its buffers are those of the module."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))

    @property
    def module(self) -> nn.Module:
        """The module with mean weights."""
        return cast(nn.Module, self.averaged.module)

    def update(self, module: nn.Module) -> None:
        """Take in the weights after an update."""
        self.averaged.update_parameters(module)
