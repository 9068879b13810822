"""A module of three layers and its training by hand, for tests of checkpoints and of the optimizer."""

import torch
from torch import nn

from evilm.config.training import OptimConfig
from evilm.train.optimizer import make_optimizer


def fresh_module() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the module with its start weights, always the same, and an optimizer that has made no step."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    return module, make_optimizer(module, OptimConfig(lr=1e-2))


def train_module(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Make these steps, each on its own data; their losses."""
    losses = []
    for step in steps:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = module(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
