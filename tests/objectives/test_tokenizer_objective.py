"""A step of the tokenizer with its upkeep: one graph, and no harm by a step without update."""

import pytest
import torch

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
def test_forward_compiles_to_one_graph_whatever_the_place_in_the_step(update):
    eager, compiled, graphs = objective(update=update), objective(update=update), []

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
        known = len(graphs) if step == 1 else known
    assert torch.equal(eager.tokenizer.quantizer.codebook, compiled.tokenizer.quantizer.codebook)
    assert len(graphs) == known, "compiled again in a later step"


@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_step_that_is_not_finite_leaves_the_codebook_usable(update):
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
