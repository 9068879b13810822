"""Checkpoints: bit-equal continuation, complete or not there, and refusal of damaged ones."""

from pathlib import Path

import pytest
import torch
from torch import nn

from evilm.config.training import OptimConfig
from evilm.errors import CheckpointError
from evilm.train.checkpoint_files import load_checkpoint, save_checkpoint, take_snapshot
from evilm.train.checkpoint_manager import publish
from evilm.train.optimizer import EMA, make_optimizer
from helpers.tiny_training import fresh_module, train_module


def test_restored_training_continues_bit_for_bit(tmp_path: Path) -> None:
    module, optimizer = fresh_module()
    unbroken = train_module(module, optimizer, range(10))
    module, optimizer = fresh_module()
    first = train_module(module, optimizer, range(4))
    save_checkpoint(tmp_path / "c", module, optimizer, {"step": 4})
    module, optimizer = fresh_module()
    train_module(module, optimizer, range(2))  # whatever was there is overwritten
    assert load_checkpoint(tmp_path / "c", module, optimizer) == {"step": 4}
    assert first + train_module(module, optimizer, range(4, 10)) == unbroken
    assert {p.suffix for p in (tmp_path / "c").iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("harm", ["cut short", "one bit", "missing"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "digests.json"])
def test_damaged_checkpoint_is_rejected_in_one_line(tmp_path: Path, name: str, harm: str) -> None:
    module, optimizer = fresh_module()
    train_module(module, optimizer, range(1))
    save_checkpoint(tmp_path / "c", module, optimizer, {"step": 1})
    file = tmp_path / "c" / name
    data = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        half = len(data) // 2
        file.write_bytes(data[:half] + (b"" if harm == "cut short" else bytes([data[half] ^ 1]) + data[half + 1 :]))
    with pytest.raises(CheckpointError, match="checkpoint c can't be used") as raised:
        load_checkpoint(tmp_path / "c", module, optimizer)
    assert "\n" not in str(raised.value)


def test_checkpoint_of_another_model_is_rejected(tmp_path: Path) -> None:
    module, optimizer = fresh_module()
    save_checkpoint(tmp_path / "c", module, optimizer, {"step": 1})
    other = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="Missing key"):
        load_checkpoint(tmp_path / "c", other, make_optimizer(other, OptimConfig()))


def test_snapshot_is_unaffected_by_later_steps_and_keeps_the_ema(tmp_path: Path) -> None:
    module, optimizer = fresh_module()
    mean = EMA(module, 0.5)
    train_module(module, optimizer, range(3))
    mean.update(module)
    snapshot = take_snapshot(module, optimizer, {"step": 3}, mean.averaged)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    train_module(module, optimizer, range(3, 5))  # goes on while the snapshot is written
    mean.update(module)
    publish(str(tmp_path / "c"), snapshot)
    module, optimizer = fresh_module()
    mean = EMA(module, 0.5)
    load_checkpoint(tmp_path / "c", module, optimizer, mean.averaged)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(mean.module.state_dict()[name], before[name])
    assert int(mean.averaged.n_averaged) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_channels_last_training_continues_bit_for_bit(fused: bool, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module, make_optimizer(module, OptimConfig(lr=1e-2), fused)

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
        losses = []
        for step in steps:
            images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            loss = module(images.to(memory_format=torch.channels_last)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    unbroken = train(*fresh(), range(6))
    module, optimizer = fresh()
    first = train(module, optimizer, range(3))
    save_checkpoint(tmp_path / "c", module, optimizer, {"step": 3})
    module, optimizer = fresh()
    load_checkpoint(tmp_path / "c", module, optimizer)
    assert first + train(module, optimizer, range(3, 6)) == unbroken
