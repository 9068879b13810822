"""Scores of a split do not depend on how its clips are divided among workers and batches."""

import pytest
import torch

from evilm.config.models import CodebookConfig, VideoTokenizerConfig
from evilm.dataloader.collate import TokenizerBatch
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.tokenizer_objective import TokenizerObjective

_CPU = torch.device("cpu")


def scores_of(workers: list[list[int]]) -> dict[str, float]:
    """Scores of 12 clips, with the sizes of each worker's batches."""
    config = VideoTokenizerConfig(
        input_px=64, num_frames=2, encoder_dim=16, encoder_layers=1, encoder_heads=2, decoder_dim=16,
        decoder_layers=1, decoder_heads=2, vocab_size=40, codebook=CodebookConfig(num_codes=16, code_dim=4),
    )  # fmt: skip
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


def test_scores_do_not_depend_on_the_division():
    whole = scores_of([[12]])
    assert whole["num_regions"] == 12 * 2 * 4
    assert {"word_loss", "commitment_loss", "codebook_loss", "word_map", "code_usage"} <= set(whole)
    for workers in ([[5, 7]], [[4], [8]], [[3, 3], [], [1, 4], [1]], [[], [12]]):
        assert scores_of(workers) == pytest.approx(whole, rel=1e-5), workers
