"""Upkeep and scores of the tokenizer's training: one graph, steps that are not finite, counts and scores of workers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from evilm.dataloader.collate import TokenizerBatch
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.tokenizer_objective import TokenizerObjective
from helpers.small_models import frames, tokenizer_config


def objective(**codebook) -> TokenizerObjective:
    torch.manual_seed(0)
    config = tokenizer_config({"revive_below": 0.8, "revive_every": 2} | codebook)
    return TokenizerObjective(VideoTokenizer(config), config).train()


def batch(step: int, clips: slice, step_clips: int = 9) -> TokenizerBatch:
    """One micro-batch of a step."""
    part = frames(step_clips, seed=step)[clips]
    words = torch.zeros(len(part), 11, dtype=torch.bool)
    return TokenizerBatch(part, words, ["a"] * len(part), clips.start, step_clips)


@pytest.mark.long
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_forward_compiles_to_one_graph_for_all_micro_batches(update):
    eager, compiled = objective(update=update), objective(update=update)
    graphs, num_graphs = [], 0

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled.compile(dynamic=True, fullgraph=True, backend=backend)
    for step in range(1, 4):
        for clips in (slice(0, 3), slice(3, 7), slice(7, 9)):
            given = batch(step, clips, 8 + step)
            found, wanted = compiled(given), eager(given)
            for name, loss in wanted.items():
                assert torch.equal(found[name].total, loss.total)
        for trainee in (eager, compiled):
            trainee.after_step(step, seed=0)
        if step == 1:
            num_graphs = len(graphs)  # one for a first size, one for all others
    assert torch.equal(eager.tokenizer.quantizer.codebook, compiled.tokenizer.quantizer.codebook)
    assert len(graphs) == num_graphs <= 2, "compiled again in a later step, or for each size"


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_nonfinite_step_leaves_the_codebook_usable(update):
    """`after_step` is called then too: whether a step was finite is known one step later."""
    trainee = objective(update=update)
    quantizer, bias = trainee.tokenizer.quantizer, trainee.tokenizer.projection.bias
    before, saved = quantizer.codebook.detach().clone(), bias.detach().clone()
    bias.data.fill_(torch.nan)
    for step in (1, 2):  # the second one revives codes
        trainee(batch(step, slice(0, 9)))
        trainee.after_step(step, seed=0)
    assert torch.allclose(quantizer.codebook, before)
    assert quantizer.usage.sum() == 0
    bias.data.copy_(saved)
    for step in (3, 4):
        trainee(batch(step, slice(0, 9)))
        trainee.after_step(step, seed=0)
    assert quantizer.codebook.isfinite().all()
    assert not torch.allclose(quantizer.codebook, before), "codes were revived"
    assert not trainee.pool.any(), "nothing of a step is left for the next"


SIZES = {"num_frames": 2, "encoder_dim": 16, "decoder_dim": 16, "vocab_size": 40}


def reviving_objective() -> TokenizerObjective:
    config = tokenizer_config(
        {"num_codes": 16, "code_dim": 4, "revive_below": 0.9, "revive_every": 3}, patch_px=32, **SIZES
    )
    torch.manual_seed(0)
    return TokenizerObjective(VideoTokenizer(config), config)


def train_as_one_of_two(rank: int, folder: str) -> None:
    """One of two workers: two steps, a checkpoint, a third step; then the same from the checkpoint."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    def step(objective: TokenizerObjective, number: int) -> None:
        clips = 4 - rank  # the first worker has one more, where a step can't be cut into equal parts
        frames = torch.randint(
            0, 256, (clips, 2, 64, 64, 3), generator=torch.Generator().manual_seed(10 * number + rank)
        )
        words = torch.zeros(clips, 40, dtype=torch.bool)
        objective(TokenizerBatch(frames.to(torch.uint8), words, ["a"] * clips, first_clip=4 * rank, step_clips=7))
        objective.after_step(number, seed=0)

    unbroken = reviving_objective()
    for number in (1, 2):
        step(unbroken, number)
    counted = unbroken.tokenizer.quantizer.usage.clone()
    dist.all_reduce(counted)
    unbroken.collect_counts()
    saved: list[Any] = [{name: tensor.clone() for name, tensor in unbroken.state_dict().items()}]  # rank 0's alone
    dist.broadcast_object_list(saved, src=0)
    resumed = reviving_objective()
    resumed.load_state_dict(saved[0])
    if rank != 0:
        resumed.drop_counts()
    for objective in (unbroken, resumed):
        step(objective, 3)
    found = {"counted": counted, "saved": saved[0]["tokenizer.quantizer.usage"]}
    found |= {"unbroken": unbroken.tokenizer.quantizer.codebook, "resumed": resumed.tokenizer.quantizer.codebook}
    torch.save({name: tensor.detach() for name, tensor in found.items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_resumed_codebook_is_revived_like_the_uninterrupted_one(tmp_path: Path) -> None:
    mp.start_processes(train_as_one_of_two, (str(tmp_path),), 2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["saved"], found["counted"]), "of both workers"
        assert int(found["counted"].sum()) == 2 * (4 + 3) * 2 * 4
        assert torch.equal(found["resumed"], found["unbroken"])
        assert not torch.equal(found["unbroken"], reviving_objective().tokenizer.quantizer.codebook), (
            "some codes were revived"
        )


_CPU = torch.device("cpu")


def scores_of(workers: list[list[int]]) -> dict[str, float]:
    """Scores of 12 clips, with the sizes of each worker's batches."""
    config = tokenizer_config({"num_codes": 16, "code_dim": 4}, **SIZES)
    torch.manual_seed(0)
    objective = TokenizerObjective(VideoTokenizer(config), config).eval()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (12, 2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    words = torch.rand(12, 40, generator=generator) < 0.2
    states, start = [], 0
    for sizes in workers:
        scores = objective.scores()
        for size in sizes:
            part = slice(start, start + size)
            with torch.no_grad():
                scores.add(TokenizerBatch(frames[part], words[part], ["a"] * size), _CPU)
            start += size
        states.append(scores.state())
    return objective.scores().result(states)


def test_scores_do_not_depend_on_batches_or_workers():
    whole = scores_of([[12]])
    assert whole["num_regions"] == 12 * 2 * 4
    assert {"word_loss", "commitment_loss", "codebook_loss", "word_map", "code_usage"} <= set(whole)
    for workers in ([[5, 7]], [[4], [8]], [[3, 3], [], [1, 4], [1]], [[], [12]]):
        assert scores_of(workers) == pytest.approx(whole, rel=1e-5), workers
