"""Checkpoints: bit-equal continuation, complete or not there, and refusal of damaged ones."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn

from evilm.config.training import OptimConfig
from evilm.errors import CheckpointError
from evilm.io import storage
from evilm.train.attempts import begin_attempt, lineage
from evilm.train.checkpoint_files import load_checkpoint, save_checkpoint, take_snapshot, verify
from evilm.train.checkpoint_manager import CheckpointManager, find_intact, newest_first, publish
from evilm.train.optimizer import EMA, learning_rate, make_optimizer


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


@pytest.mark.parametrize("harm", ["cut short", "one bit", "missing"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json", "digests.json"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str, harm: str) -> None:
    module, optimizer = _fresh()
    _train(module, optimizer, range(1))
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


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    module, optimizer = _fresh()
    save_checkpoint(tmp_path / "c", module, optimizer, {"step": 1})
    other = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="Missing key"):
        load_checkpoint(tmp_path / "c", other, make_optimizer(other, OptimConfig()))


def test_a_snapshot_is_of_its_moment_and_keeps_the_mean(tmp_path: Path) -> None:
    module, optimizer = _fresh()
    mean = EMA(module, 0.5)
    _train(module, optimizer, range(3))
    mean.update(module)
    snapshot = take_snapshot(module, optimizer, {"step": 3}, mean.averaged)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    _train(module, optimizer, range(3, 5))  # goes on while the snapshot is written
    mean.update(module)
    publish(str(tmp_path / "c"), snapshot)
    module, optimizer = _fresh()
    mean = EMA(module, 0.5)
    load_checkpoint(tmp_path / "c", module, optimizer, mean.averaged)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(mean.module.state_dict()[name], before[name])
    assert int(mean.averaged.n_averaged) == 1


def _published(out: str, *names: str) -> None:
    module, optimizer = _fresh()
    _train(module, optimizer, range(1))
    for name in names:
        publish(storage.join(out, "checkpoints", name), take_snapshot(module, optimizer, {"step": name}))


@pytest.fixture(params=["local", "s3"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output folder, local and on an object store."""
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3_bucket')}/model"


def test_the_newest_intact_checkpoint_is_found(
    out: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_intact(out, _state) is None, "there is none: a fresh start"
    names = ["step_00000004-001", "step_00000008-001", "step_00000008-002", "step_00000012-002"]
    _published(out, *names)
    assert newest_first(out) == names[::-1]
    storage.write_bytes(storage.join(out, "checkpoints", names[3], "weights.safetensors"), b"half of it")
    storage.delete(storage.join(out, "checkpoints", names[2], "digests.json"))  # as a kill leaves an upload
    monkeypatch.setattr(logging.getLogger("evilm"), "propagate", True)
    with caplog.at_level(logging.WARNING, "evilm"):
        assert find_intact(out, _state) == (names[1], names[1])
    said = [record.getMessage() for record in caplog.records if record.name.startswith("evilm")]
    first, second = dict.fromkeys(said)  # pytest hears them twice where another test's logger lets them through
    assert f"{names[3]} can't be used: weights.safetensors has" in first
    assert f"{names[2]} can't be used: digests.json is missing" in second
    assert "--overwrite" not in first + second


def _state(folder: Path) -> str:
    return json.loads((folder / "state.json").read_text())["step"]


def test_the_last_and_the_best_are_kept(out: str) -> None:
    names = [f"step_{step:08d}-002" for step in (4, 8, 12, 16)]
    _published(out, "step_00000002-001", *names, "step_00000020-003")
    keeper = CheckpointManager(out, run=0, attempt=2, keep=2, rank=0)
    keeper._delete_all_but({*names[-2:], names[0]})
    left = ["step_00000020-003", names[3], names[2], names[0]]
    assert newest_first(out) == left, "those of a later attempt are not touched"
    with storage.local_folder(storage.join(out, "checkpoints", names[0])) as folder:
        verify(folder)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(OSError, match="full"):
        _published(str(tmp_path), "step_00000004-001")
    assert newest_first(str(tmp_path)) == []
    monkeypatch.undo()
    CheckpointManager(str(tmp_path), run=0, attempt=1, keep=1, rank=0)
    assert list((tmp_path / "checkpoints").iterdir()) == [], "the next start sweeps up"


class _Hiccup(MemoryFileSystem):
    """A store in memory whose uploads fail as often as it is told."""

    protocol = "hiccup"
    cachable = False
    failures: ClassVar[list[OSError]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("hiccup://"))

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        if self.failures:
            raise self.failures.pop()
        super().put_file(lpath, rpath, *args, **kwargs)


@pytest.mark.faults
def test_an_upload_that_fails_in_passing_is_tried_again() -> None:
    fsspec.register_implementation("hiccup", _Hiccup, clobber=True)
    _Hiccup.failures += [ConnectionError("reset"), ConnectionError("reset")]
    _published("hiccup://model", "step_00000004-001")
    assert not _Hiccup.failures
    assert find_intact("hiccup://model", _state) == ("step_00000004-001", "step_00000004-001")


def test_the_lineage_of_weights_through_restarts(out: str) -> None:
    assert begin_attempt(out, 0, "", 2) == 1
    assert begin_attempt(out, 8, "step_00000008-001", 1) == 2
    assert begin_attempt(out, 4, "step_00000004-001", 2) == 3, "the newest was damaged"
    assert lineage(out) == [(1, 0, 4), (3, 4, None)]
    assert begin_attempt(out, 6, "step_00000006-003", 2) == 4
    assert lineage(out) == [(1, 0, 4), (3, 4, 6), (4, 6, None)]
    assert begin_attempt(out, 0, "", 2) == 5, "nothing was left"
    assert lineage(out) == [(5, 0, None)]


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


@pytest.mark.parametrize("fused", [False, True])
def test_channels_last_goes_on_bit_for_bit(fused: bool, tmp_path: Path) -> None:
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
