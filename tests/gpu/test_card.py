"""Checks of a GPU: on a real card where there is one, the same bodies on the CPU everywhere.

On the CPU they compare the CPU with itself in another memory format, which shows that the tests run; the figures are
the card's. Tolerances are stated beside each comparison. Neither Ray, MLflow nor a video decoder is needed.
"""

import copy
import gc
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evilm.dataloader.collate import Batch
from evilm.eval.scoring import ScoreJob, Scorer
from evilm.train.checkpoint_files import load_checkpoint, save_checkpoint
from evilm.train.micro_batches import on_device
from evilm.train.train_state import TrainState
from evilm.train.validation import evaluate
from helpers import gpu_models as small
from helpers.gpu_ranks import start_ranks, train_ranks

_CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CARD = pytest.param("cuda", marks=_CARD)
EVERYWHERE = pytest.mark.parametrize("device", ["cpu", CARD])


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """float32 without TF32, as PyTorch's default is for matrix products and not for convolutions."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _gradients(objective: nn.Module, batch: Any, device: str, precision: str) -> tuple[dict[str, float], torch.Tensor]:
    """Losses and all gradients of one batch, on the CPU."""
    config = small.settings(cluster__precision=precision, cluster__channels_last=True)
    state = TrainState(objective, config, torch.device(device), 0, 1)  # type: ignore[arg-type]
    torch.manual_seed(0)
    with state.autocast:
        losses = state.objective(batch.to(torch.device(device)))
    sum(loss.total.float() / loss.num_items for loss in losses.values()).backward()
    gradient = [p.grad.float().flatten().cpu() for p in objective.parameters() if p.grad is not None]
    return {name: float(loss.total / loss.num_items) for name, loss in losses.items()}, torch.cat(gradient)


@pytest.mark.parametrize(
    ("device", "size"),
    [("cpu", "tiny"), pytest.param("cpu", "paper", marks=pytest.mark.long)]
    + [pytest.param("cuda", size, marks=_CARD) for size in ("tiny", "paper")],
)
@pytest.mark.parametrize(("precision", "loss_rel", "gradient_rel"), [("fp32", 1e-4, 1e-3), ("bf16", 2e-2, 0.15)])
def test_losses_and_gradients_match_the_cpu_in_fp32(
    device: str, size: str, precision: str, loss_rel: float, gradient_rel: float
) -> None:
    """Each loss within `loss_rel`, the gradient vector within `gradient_rel` of its length."""
    objective, batch = small.pretrain_case(size)
    twin = copy.deepcopy(objective)
    config = small.settings()
    wanted = TrainState(objective, config, torch.device("cpu"), 0, 1)
    losses = wanted.objective(batch)
    sum(loss.total / loss.num_items for loss in losses.values()).backward()
    expected = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    found, gradient = _gradients(twin, batch, device, precision)
    assert found == pytest.approx({n: float(x.total / x.num_items) for n, x in losses.items()}, rel=loss_rel)
    error = float((gradient - expected).norm() / expected.norm())
    print(f"{device} {size} {precision}: relative error of the gradient {error:.2e}")
    assert error < gradient_rel


@EVERYWHERE
@pytest.mark.parametrize("kind", ["student", "tokenizer"])
def test_thirty_steps_reduce_the_loss(device: str, kind: str) -> None:
    """The same six clips each time; the last five steps at most 0.8 times the first five."""
    make, batch, settings = small.KINDS[kind]
    precision = "bf16" if device == "cuda" else "fp32"
    config = settings(cluster__precision=precision, optim__lr=3e-3)
    metrics, _ = small.train(make(), config, device, [[batch()]] * 30)
    losses = [step["loss"] for step in metrics]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), losses


@EVERYWHERE
@pytest.mark.parametrize("kind", ["student", "tokenizer"])
def test_resumed_training_equals_uninterrupted(device: str, kind: str, tmp_path: Path) -> None:
    """Bit-equal on the CPU, and as restored; on a card later losses within 0.1 %, as its atomics add in any order."""
    make, batch, settings = small.KINDS[kind]
    config, batches = settings(optim__ema_decay=0.9), [[batch(epoch=step)] for step in range(6)]
    unbroken, _ = small.train(make(), config, device, batches)
    objective = make()
    state, train_step = small.make_state(objective, config, device)
    small.run(train_step, batches[:3], torch.device(device), num_steps=6)
    assert state._ema
    save_checkpoint(tmp_path / "3", objective, state._optimizer, {"step": 3}, state._ema.averaged)
    other = make()
    resumed, train_step = small.make_state(other, config, device)
    assert resumed._ema
    assert load_checkpoint(tmp_path / "3", other, resumed._optimizer, resumed._ema.averaged)["step"] == 3
    for kept, found in ((objective, other), (state.finished, resumed.finished)):
        for (name, one), two in zip(kept.state_dict().items(), found.state_dict().values(), strict=True):
            assert torch.equal(one, two), name
    for one, two in zip(objective.parameters(), other.parameters(), strict=True):
        moments, restored = state._optimizer.state.get(one, {}), resumed._optimizer.state.get(two, {})
        assert all(torch.equal(moments[key].cpu(), restored[key].cpu()) for key in moments)
    found = small.run(train_step, batches[3:], torch.device(device), start=3)
    for one, two in zip(found, unbroken[3:], strict=True):
        assert one == (two if device == "cpu" else pytest.approx(two, rel=1e-3))


@EVERYWHERE
@pytest.mark.parametrize("kind", ["student", "tokenizer"])
def test_ranks_train_like_one_process(device: str, kind: str, tmp_path: Path) -> None:
    """NCCL with as many ranks as cards, gloo with two: three uneven micro-batches, channels last, then an evaluation.

    Losses, gradient norms and scores within 1e-4 of one process's, on a card 1e-3.
    """
    world = torch.cuda.device_count() if device == "cuda" else 2
    alone = train_ranks(0, 1, device, kind, str(tmp_path / "alone"))
    found = start_ranks(world, device, kind, tmp_path)
    for one, two in zip(found, alone, strict=True):
        assert one == pytest.approx(two, rel=1e-4 if device == "cpu" else 1e-3, abs=1e-6)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.long), CARD])
@pytest.mark.parametrize("kind", ["student", "tokenizer"])
def test_compiled_equals_eager(device: str, kind: str) -> None:
    """Losses of three steps within 0.1 % in fp32, with batches of two sizes."""
    make, batch, settings = small.KINDS[kind]
    batches = [[batch(clips, epoch)] for epoch, clips in enumerate((6, 5, 6))]
    eager, _ = small.train(make(), settings(), device, batches)
    compiled, _ = small.train(make(), settings(cluster__compile=True), device, batches)
    for one, two in zip(compiled, eager, strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


@EVERYWHERE
def test_loader_batches_arrive_intact_while_steps_run(device: str, tmp_path: Path) -> None:
    """Every tensor of every batch as the loader made it, though its copy and the loader's buffers were in use."""
    wanted = [_kept(batch) for batch in small.loader(tmp_path / "one").batches(0, 12)]
    loader = small.loader(tmp_path / "two")
    if device == "cuda":
        loader.finish = Batch.pin_memory
    _, train_step = small.make_state(small.pretrain_objective(), small.settings(), device)
    found = []
    for step, batch in enumerate(on_device(loader.batches(0, 12), torch.device(device))):
        train_step.step(step, 12, range(1), [batch], [0.0] * 4)
        found.append(_kept(batch))
        if device == "cuda":
            torch.cuda._sleep(10_000_000)  # keep the device behind the host, so that copies do run beside a step
    train_step.settle()
    for one, two in zip(found, wanted, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name].cpu(), two[name]) for name in one)


def _kept(batch: Batch) -> dict[str, torch.Tensor]:
    tensors = {item.name: getattr(batch, item.name) for item in fields(batch)}  # type: ignore[arg-type]
    return {name: value.clone() for name, value in tensors.items() if isinstance(value, torch.Tensor)}


@EVERYWHERE
def test_codes_match_the_cpus(device: str) -> None:
    """At least 99 % of the codes of 64 clips: near ties tip where another processor rounds otherwise."""
    tokenizer = small.tokenizer_objective().tokenizer.eval()
    frames = torch.from_numpy(small.rows(64).frames)
    wanted = copy.deepcopy(tokenizer).encode(frames)
    tokenizer.to(device)
    found = torch.cat([tokenizer.encode(part.to(device)).cpu() for part in frames.split(10)])
    share = float((found == wanted).float().mean())
    print(f"{device}: {share:.2%} of {wanted.numel()} codes agree")
    assert share >= (1 if device == "cpu" else 0.99)


@EVERYWHERE
def test_zero_shot_scores_match_the_cpus(device: str, tmp_path: Path) -> None:
    """Match scores within 1e-3, predicted codes of at least 99 % of the regions."""
    job = small.score_job(tmp_path)
    scorers = [Scorer(ScoreJob(**{**vars(job), "use_gpu": use_gpu})) for use_gpu in (device == "cuda", False)]
    assert scorers[0]._student.device.type == device
    for number in range(len(job.blocks)):
        one, two = (scorer({"block": np.array([number])}) for scorer in scorers)
        np.testing.assert_allclose(one["match"], two["match"], rtol=1e-3, atol=1e-3)
        assert np.mean(one["predicted"] == two["predicted"]) >= 0.99


@EVERYWHERE
@pytest.mark.parametrize("kind", ["student", "tokenizer"])
def test_evaluation_matches_the_cpus(device: str, kind: str) -> None:
    """Every metric within 0.1 % in fp32; `match_auc`, which counts comparisons, within 1 %."""
    make, batch, _ = small.KINDS[kind]
    found = []
    for place in (device, "cpu"):
        state, _ = small.make_state(make(), small.settings(), place)
        loader: Any = small.Held([batch(6, -1), batch(5, -1)])
        found.append(evaluate(state.finished, loader, torch.device(place), 1, state.autocast))
    auc = [metrics.pop("match_auc", 0.0) for metrics in found]
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6)
    assert auc[0] == pytest.approx(auc[1], rel=1e-2)


@pytest.mark.parametrize(
    ("device", "steps"), [pytest.param("cpu", 25, marks=pytest.mark.long), pytest.param("cuda", 200, marks=_CARD)]
)
def test_memory_stays_flat(device: str, steps: int) -> None:
    """As many living tensors after the last step as after the tenth; on a card also allocated bytes, of 200 steps."""
    place = torch.device(device)
    _, train_step = small.make_state(small.pretrain_objective(), small.settings(optim__ema_decay=0.9), device)
    held = [[small.pretrain_batch(epoch=epoch)] for epoch in range(3)]
    counts = []
    for step in range(steps):
        small.run(train_step, [held[step % 3]], place, start=step)
        if step + 1 in (10, steps):
            gc.collect()
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            counts.append((tensors, torch.cuda.memory_allocated() if device == "cuda" else 0))
    (tensors, allocated), (later, allocated_later) = counts
    assert later <= tensors
    assert allocated_later <= allocated + 2**20
