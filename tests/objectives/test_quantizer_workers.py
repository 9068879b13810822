"""k-means start, moving means and revival use the regions of all workers and all micro-batches of a step."""

import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from evilm.dataloader.collate import TokenizerBatch
from evilm.dataloader.sampler import micro_batch_slice
from evilm.model.tokenizers.quantizer import kmeans
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.tokenizer_objective import TokenizerObjective
from evilm.train.micro_batches import micro_batches_of
from helpers.small_models import frames, tokenizer_config

_CLIPS, _STEPS = 9, 3
_LAYOUTS = {"2 workers": 2, "2 workers x 2": 4, "2 workers, 3 micro-batches": 3}
"""Micro-batches of a step, of clips that can't be divided evenly."""


def objective(**codebook) -> TokenizerObjective:
    torch.manual_seed(0)
    settings = {"update": "ema", "ema_decay": 0.5, "revive_below": 0.8, "revive_every": _STEPS} | codebook
    config = tokenizer_config(settings)
    return TokenizerObjective(VideoTokenizer(config), config).train()


def micro_batches(step: int, micro_batches: int, rank: int, world: int) -> list[TokenizerBatch]:
    """This worker's micro-batches of a step of `_CLIPS` clips."""
    pixels, found = frames(_CLIPS, seed=step), []
    for part in micro_batches_of(rank, world, micro_batches):
        mine = micro_batch_slice(_CLIPS, part, micro_batches)
        words = torch.zeros(mine.stop - mine.start, 11, dtype=torch.bool)
        found.append(TokenizerBatch(pixels[mine], words, ["a"] * len(words), mine.start, _CLIPS))
    return found


def trained(num_micro_batches: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """The codebook from the start by k-means to the revival, with weights that do not change otherwise."""
    trainee = objective(init="kmeans", init_batches=2)
    quantizer = trainee.tokenizer.quantizer

    def batches(count: int) -> list[TokenizerBatch]:
        return [batch for step in range(count) for batch in micro_batches(step, num_micro_batches, rank, world)]

    trainee.prepare(batches, seed=0)
    found = {"start": quantizer.codebook.detach().clone()}
    for step in range(1, _STEPS + 1):
        for batch in micro_batches(step, num_micro_batches, rank, world):
            trainee(batch)
        trainee.after_step(step, seed=0)
        found[f"step {step}"] = quantizer.codebook.detach().clone()
    return found


def work(rank: int, folder: str) -> None:
    """One of two workers."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({name: trained(count, rank, 2) for name, count in _LAYOUTS.items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """One worker, one micro-batch per step."""
    return trained(1)


def assert_same(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    for name, codebook in whole.items():
        torch.testing.assert_close(found[name], codebook, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_workers_have_the_codebook_of_one(whole, tmp_path):
    mp.start_processes(work, (str(tmp_path),), 2, start_method="fork")
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for layout in _LAYOUTS:
        assert_same(both[0][layout], whole)
        assert all(torch.equal(both[0][layout][name], both[1][layout][name]) for name in whole), layout


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_gradient_accumulation_does_not_change_the_codebook(num_micro_batches, whole):
    assert_same(trained(num_micro_batches), whole)


def test_kmeans_and_revival_use_the_whole_step(whole):
    """Otherwise equal results of all layouts would prove nothing."""
    trainee = objective()
    with torch.no_grad():
        first = [trainee.tokenizer.vectors(frames(_CLIPS, seed=step)).flatten(0, 1) for step in range(_STEPS + 1)]
    assert torch.allclose(whole["start"], kmeans(torch.cat(first[:2]), 16, seed=0), atol=1e-6)
    assert not torch.allclose(whole["start"], kmeans(torch.cat([v[:54] for v in first[:2]]), 16, seed=0), atol=1e-3)
    likeness = (whole[f"step {_STEPS}"] @ first[_STEPS].T).max(dim=-1)
    revived = likeness.indices[likeness.values > 1 - 1e-6]
    assert {int(region) // 54 for region in revived} == {0, 1}, "codes revived on regions of both halves"


def test_large_step_is_sampled_evenly_into_the_pool():
    trainee = objective()
    vectors = F.normalize(torch.randn(40, 600, 8), dim=-1)
    for start in (0, 13, 30):
        stop = {0: 13, 13: 30, 30: 40}[start]
        batch = TokenizerBatch(torch.zeros(0), torch.zeros(0), ["a"] * (stop - start), start, 40)
        trainee._fill_pool(batch, vectors[start:stop])
    rows = torch.arange(4096) * 24000 // 4096
    assert torch.equal(trainee.pool, vectors.flatten(0, 1)[rows])


def test_kmeans_with_fewer_vectors_than_codes_warns(caplog):
    trainee = objective(init="kmeans", init_batches=1, num_codes=500)
    with caplog.at_level(logging.WARNING):
        trainee.prepare(lambda count: [b for step in range(count) for b in micro_batches(step, 1, 0, 1)], seed=0)
    assert [record.getMessage() for record in caplog.records] == [
        "k-means start: 108 vectors for 500 codes, so no k-means was done and the other 392 codes are random "
        "directions; raise arch.codebook.init_batches from 1 to at least 5"
    ]
