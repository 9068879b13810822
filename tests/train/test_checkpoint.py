"""Checkpoints: bit-equal continuation, and refusal of damaged ones."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from evilm.config.train import OptimConfig
from evilm.errors import CheckpointError
from evilm.train.checkpoint import load_checkpoint, save_checkpoint
from evilm.train.loop import learning_rate, make_optimizer


def _fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    return module, make_optimizer(module, OptimConfig(lr=1e-2))


def _train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = module(inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_restored_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    module, optimizer = _fresh()
    unbroken = _train(module, optimizer, range(10))
    module, optimizer = _fresh()
    first = _train(module, optimizer, range(4))
    save_checkpoint(tmp_path / "c", module, optimizer, {"step": 4})
    module, optimizer = _fresh()
    _train(module, optimizer, range(2))  # whatever was there is overwritten
    assert load_checkpoint(tmp_path / "c", module, optimizer) == {"step": 4}
    assert first + _train(module, optimizer, range(4, 10)) == unbroken
    assert {p.suffix for p in (tmp_path / "c").iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    module, optimizer = _fresh()
    _train(module, optimizer, range(1))
    save_checkpoint(tmp_path / "c", module, optimizer, {"step": 1})
    file = tmp_path / "c" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="checkpoint c can't be used") as raised:
        load_checkpoint(tmp_path / "c", module, optimizer)
    assert "\n" not in str(raised.value)


def test_weight_decay_spares_vectors() -> None:
    module, optimizer = _fresh()
    decayed, spared = optimizer.param_groups
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(module.parameters()))


def test_the_learning_rate_warms_up_and_falls_like_a_cosine() -> None:
    settings = OptimConfig(lr=1.0, warmup_ratio=0.1, final_lr_ratio=0.0)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5), "half way down, the cosine is half"
    assert rates[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
