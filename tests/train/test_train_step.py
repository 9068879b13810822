"""One update of the weights: the same in micro-batches as in one batch, and the options of the optimizer."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from evilm.config.models import EViLMConfig
from evilm.config.stages import Pretrain
from evilm.config.training import ObjectivesConfig
from evilm.dataloader.collate import PretrainBatch
from evilm.dataloader.sampler import TrainSampler, micro_batch_slice
from evilm.errors import NonFiniteError
from evilm.model.evilm_model import EViLMModel
from evilm.objectives.pretraining_objective import PretrainObjective
from evilm.train.micro_batches import MicroBatchSampler, micro_batches_of
from evilm.train.optimizer import EMA, autocast, make_optimizer
from evilm.train.train_step import TrainStep
from helpers.small_models import tokenizer_config

_CPU = torch.device("cpu")
_ARCH = EViLMConfig(
    video_encoder="edgenext_xx_small", input_px=64, num_frames=2, text_dim=16, text_layers=1, text_heads=2,
    text_positions=16, max_text_len=8, dim=16, decoder_layers=1, decoder_heads=2, dropout=0.0, vocab_size=40,
    num_codes=8,
)  # fmt: skip


def _batch(clips: int) -> PretrainBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    words = draw(40, clips, 6)
    targets = torch.where(draw(4, clips, 6) == 0, words, -1)  # another number of them in each clip
    targets[:, 0] = words[:, 0]
    return PretrainBatch(
        frames=draw(256, clips, 2, 64, 64, 3).to(torch.uint8),
        mask=draw(3, clips, 2, 2, 2) == 0,
        code_ids=draw(8, clips, 8),
        input_ids=words,
        padding_mask=torch.zeros(clips, 6, dtype=torch.bool),
        word_targets=targets,
        negative_ids=words.roll(1, 0)[: clips - 1],
        negative_padding=torch.zeros(clips - 1, 6, dtype=torch.bool),
        negative_of=torch.arange(clips - 1),
        clip_ids=[f"clip{k}" for k in range(clips)],
    )


def _slice(batch: PretrainBatch, start: int, stop: int) -> PretrainBatch:
    """Some clips of a batch, with their negatives."""
    mine = (batch.negative_of >= start) & (batch.negative_of < stop)
    fields: dict[str, Any] = {name: getattr(batch, name)[start:stop] for name in _PER_CLIP}
    return PretrainBatch(
        **fields,
        negative_ids=batch.negative_ids[mine],
        negative_padding=batch.negative_padding[mine],
        negative_of=batch.negative_of[mine] - start,
    )


_PER_CLIP = ("frames", "mask", "code_ids", "input_ids", "padding_mask", "word_targets", "clip_ids")


def _trained(
    num_micro_batches: int, steps: int = 2, spoil: str = "", lag: int = 0, rank: int = 0, world: int = 1, **values: Any
) -> tuple[PretrainObjective, list[Any], Any]:
    """A small student after some steps on one batch cut into micro-batches, of which this worker has its own: it, the
    outcomes, and its mean.
    """
    most = -(-8 // num_micro_batches) * num_micro_batches
    settings = Pretrain().override(
        {"schedule.batch_clips": most, "schedule.gradient_accumulation_steps": num_micro_batches, "optim.lr": 1e-3}
        | values
    )
    torch.manual_seed(0)
    objective = PretrainObjective(EViLMModel(_ARCH), ObjectivesConfig())
    objective.train()
    if settings.cluster.channels_last:
        objective.to(memory_format=torch.channels_last)
    if spoil:
        objective.get_parameter(spoil).data.flatten()[0] = torch.nan
    if settings.cluster.compile:
        objective.compile(dynamic=True)
    mean = EMA(objective, settings.optim.ema_decay) if settings.optim.ema_decay else None
    optimizer = make_optimizer(objective, settings.optim, settings.cluster.fused)
    model = DistributedDataParallel(objective, gradient_as_bucket_view=True) if world > 1 else objective
    train_step = TrainStep(objective, model, optimizer, settings, world, autocast("fp32", _CPU), _CPU, mean)
    batch, mine = _batch(8), micro_batches_of(rank, world, num_micro_batches)
    batches = [
        _slice(batch, cut.start, cut.stop) for cut in (micro_batch_slice(8, part, num_micro_batches) for part in mine)
    ]
    train_step._lag = lag
    outcomes = [train_step.step(step, 10, mine, batches, [0.0, 1.0 / world]) for step in range(steps)]
    return objective, [outcome for known in [*outcomes, train_step.settle()] for outcome in known], mean


def _assert_same_gradients(one: torch.nn.Module, other: torch.nn.Module, atol: float = 1e-6) -> None:
    """Gradients rather than weights: AdamW blows the rounding of a gradient of nothing up to a whole step."""
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=atol, msg=name)


@pytest.mark.parametrize("num_micro_batches", [4, 3])
def test_micro_batches_give_the_step_of_one_batch(num_micro_batches: int) -> None:
    """Also where one micro-batch has fewer clips."""
    _assert_same_gradients(_trained(1, steps=1)[0], _trained(num_micro_batches, steps=1)[0])
    _, outcomes, _ = _trained(1, steps=3)
    _, in_micro_batches, _ = _trained(num_micro_batches, steps=3)
    for a, b in zip(outcomes, in_micro_batches, strict=True):
        assert a.flags == b.flags == [0.0, 1.0]
        assert b.metrics == pytest.approx(a.metrics, rel=1e-4)


def test_counts_equal_the_items_of_each_loss() -> None:
    objective, _, _ = _trained(1, steps=0)
    batch = _slice(_batch(8), 2, 7)
    assert objective.counts(batch) == {name: loss.num_items for name, loss in objective(batch).items()}


def test_tokenizer_counts_equal_the_items_of_each_loss() -> None:
    from evilm.dataloader.collate import TokenizerBatch
    from evilm.model.tokenizers.semantic_vq import VideoTokenizer
    from evilm.objectives.tokenizer_objective import TokenizerObjective

    sizes = {"patch_px": 32, "num_frames": 2, "encoder_dim": 16, "decoder_dim": 16, "vocab_size": 40}
    config = tokenizer_config({"num_codes": 8, "code_dim": 4}, **sizes)
    objective = TokenizerObjective(VideoTokenizer(config), config)
    frames = torch.zeros(3, 2, 64, 64, 3, dtype=torch.uint8)
    batch = TokenizerBatch(frames, torch.zeros(3, 40, dtype=torch.bool), ["a", "b", "c"])
    assert objective.counts(batch) == {name: loss.num_items for name, loss in objective(batch).items()}


def test_nan_loss_stops_training_or_skips_the_step() -> None:
    name = next(n for n, p in _trained(1, steps=0)[0].named_parameters() if "match" in n and p.ndim > 1)
    with pytest.raises(NonFiniteError, match=r"step 1: vtm loss is not finite, at clips clip0, .*--schedule.nonfinite"):
        _trained(2, steps=1, spoil=name)
    before, _, _ = _trained(1, steps=0, spoil=name)
    after, outcomes, _ = _trained(2, steps=3, spoil=name, **{"schedule.nonfinite": "skip"})
    assert [outcome.skipped["step"] for outcome in outcomes] == [1, 2, 3]
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        assert bool(((a == b) | (a.isnan() & b.isnan())).all())
    with pytest.raises(NonFiniteError, match="step 20"):
        _trained(1, steps=30, spoil=name, **{"schedule.nonfinite": "skip"})


def test_ema_follows_the_weights() -> None:
    _, _, mean = _trained(1, steps=1, **{"optim.ema_decay": 0.9})
    first, _, _ = _trained(1, steps=1)
    for a, b in zip(mean.module.parameters(), first.parameters(), strict=True):
        assert torch.equal(a, b)
    weights = [dict(_trained(1, steps=k)[0].named_parameters()) for k in (1, 2, 3)]
    _, _, mean = _trained(1, steps=3, **{"optim.ema_decay": 0.9})
    for name, value in mean.module.named_parameters():
        wanted = weights[0][name].lerp(weights[1][name], 0.1).lerp(weights[2][name], 0.1)
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flag", ["cluster.fused", "cluster.channels_last"])
def test_fused_and_channels_last_change_only_rounding(flag: str) -> None:
    plain, outcomes, _ = _trained(1)
    fast, others, _ = _trained(1, **{flag: True})
    assert others[-1].metrics == pytest.approx(outcomes[-1].metrics, rel=1e-3)
    _assert_same_gradients(plain, fast, atol=1e-3)


def _work(rank: int, folder: str, cases: dict[str, tuple[int, dict[str, Any]]]) -> None:
    """One of two workers, whose micro-batches of a step differ in number or size."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, (num_micro_batches, values) in cases.items():
        objective, outcomes, _ = _trained(num_micro_batches, rank=rank, world=2, **values)
        gradients = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
        torch.save([gradients, [outcome.metrics for outcome in outcomes]], Path(folder) / f"{name}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_have_the_gradients_of_one(tmp_path: Path) -> None:
    """With one micro-batch each; with two and one; with uneven ones, accumulated, channels last, and clipped."""
    cases: dict[str, tuple[int, dict[str, Any]]] = {
        "even": (2, {}),
        "uneven": (3, {}),
        "accumulated": (5, {"optim.ema_decay": 0.9}),
        "channels_last": (3, {"cluster.channels_last": True}),
        "clipped": (3, {"optim.clip_norm": 0.01, "cluster.fused": True}),
    }
    alone = {
        name: _trained(num_micro_batches, **values) for name, (num_micro_batches, values) in cases.items()
    }  # imports what the others need
    torch.multiprocessing.start_processes(_work, (str(tmp_path), cases), 2, start_method="fork")
    for name, (objective, outcomes, _) in alone.items():
        (one, metrics), (other, others) = (torch.load(tmp_path / f"{name}{rank}.pt") for rank in range(2))
        assert metrics == others, "every worker logs and decides by the same numbers"
        for step, outcome in enumerate(outcomes):
            assert metrics[step] == pytest.approx(outcome.metrics, rel=1e-3), name
        grads = {key: p.grad for key, p in objective.named_parameters() if p.grad is not None}
        assert grads.keys() == one.keys() == other.keys()
        for key, gradient in grads.items():
            assert torch.equal(one[key], other[key]), (name, key)
            torch.testing.assert_close(one[key], gradient, rtol=1e-3, atol=1e-6, msg=f"{name}: {key}")


@pytest.mark.parametrize(("world", "num_micro_batches"), [(1, 4), (2, 4), (3, 4), (4, 4), (3, 7)])
def test_micro_batches_are_dealt_to_workers_once_each(world: int, num_micro_batches: int) -> None:
    dealt = [micro_batches_of(rank, world, num_micro_batches) for rank in range(world)]
    assert [part for mine in dealt for part in mine] == list(range(num_micro_batches))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    whole = TrainSampler(
        [[10, 10, 8]], batch_clips=num_micro_batches * 2 + 1, seed=0, window=2
    )  # in micro-batches of different sizes
    for step in range(whole.num_steps):
        rows = [
            order.step(step * len(mine) + k)
            for mine in dealt
            for order in [MicroBatchSampler(whole, num_micro_batches, mine)]
            for k in range(len(mine))
        ]
        np.testing.assert_array_equal(np.concatenate([r.rows[r.mine] for r in rows]), whole.step(step).rows)


def test_gradients_are_clipped_to_a_norm() -> None:
    def norm(objective: torch.nn.Module) -> float:
        return float(torch.stack([p.grad.norm() for p in objective.parameters() if p.grad is not None]).norm())

    free, outcomes, _ = _trained(1, steps=1, **{"optim.clip_norm": 0.0})
    clipped, others, _ = _trained(2, steps=1, **{"optim.clip_norm": 0.01})
    assert norm(free) == pytest.approx(outcomes[0].metrics["grad_norm"], rel=1e-4)
    assert norm(clipped) == pytest.approx(0.01, rel=1e-3)
    assert others[0].metrics["grad_norm"] == pytest.approx(norm(free), rel=1e-3), "it is logged as it was before"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_model_takes_the_same_steps() -> None:
    plain, outcomes, _ = _trained(2)
    compiled, others, _ = _trained(2, **{"cluster.compile": True})
    assert others[-1].metrics == pytest.approx(outcomes[-1].metrics, rel=1e-3)
    _assert_same_gradients(plain, compiled, atol=1e-3)


def test_metrics_read_one_step_late_are_equal() -> None:
    """As on a GPU, where the host does not wait for the step that it has just queued."""
    now, late = _trained(2, steps=4), _trained(2, steps=4, lag=1)
    assert [outcome.metrics for outcome in late[1]] == [outcome.metrics for outcome in now[1]]
    assert [outcome.flags for outcome in late[1]] == [[0.0, 1.0]] * 4
    for a, b in zip(now[0].parameters(), late[0].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("lag", [0, 1])
def test_fused_optimizer_changes_nothing_where_a_loss_is_nan(lag: int) -> None:
    name = next(n for n, p in _trained(1, steps=0)[0].named_parameters() if "match" in n and p.ndim > 1)
    settings = {"schedule.nonfinite": "skip", "cluster.fused": True}
    before, _, _ = _trained(1, steps=0, spoil=name)
    after, outcomes, _ = _trained(1, steps=3, spoil=name, lag=lag, **settings)
    assert [outcome.skipped["step"] for outcome in outcomes] == [1, 2, 3]
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        assert bool(((a == b) | (a.isnan() & b.isnan())).all())
    with pytest.raises(NonFiniteError, match="step 1: vtm loss is not finite"):
        _trained(1, steps=2, spoil=name, lag=lag, **{"cluster.fused": True})


def test_heads_without_a_weight_are_not_trained() -> None:
    """DDP waits for the gradient of each parameter that is to be trained."""
    for mlm, vtm, mvm in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)):
        weights = ObjectivesConfig(mlm_weight=mlm, vtm_weight=vtm, mvm_weight=mvm)
        objective = PretrainObjective(EViLMModel(_ARCH), weights)
        sum(loss.total for loss in objective(_batch(8)).values()).backward()
        assert all((p.grad is not None) == p.requires_grad for p in objective.parameters()), (mlm, vtm, mvm)
