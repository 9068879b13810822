"""The objective of pre-training sees jittered frames; their codes are what they were."""

from dataclasses import replace

import torch

from evilm.config.models import EViLMConfig
from evilm.config.training import ObjectivesConfig
from evilm.dataloader.collate import PretrainBatch
from evilm.dataloader.color_jitter import jitter_colours
from evilm.model.evilm_model import EViLMModel
from evilm.objectives.pretraining_objective import PretrainObjective


def test_jitter_is_the_frames_alone() -> None:
    torch.manual_seed(0)
    sizes = {"input_px": 64, "num_frames": 2, "vocab_size": 50, "text_dim": 32, "text_layers": 1, "text_heads": 2}
    sizes |= {"text_positions": 40, "dim": 48, "decoder_layers": 1, "decoder_heads": 3, "num_codes": 20}
    student = EViLMModel(EViLMConfig(video_encoder="edgenext_xx_small", **sizes))
    objective = PretrainObjective(student, ObjectivesConfig()).eval()
    mask = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    mask[:, :, 0] = True
    words = torch.randint(5, 50, (2, 6))
    batch = PretrainBatch(
        frames=torch.randint(0, 256, (2, 2, 64, 64, 3), dtype=torch.uint8),
        mask=mask,
        code_ids=torch.randint(0, 20, (2, 8)),
        input_ids=words,
        padding_mask=torch.zeros(2, 6, dtype=torch.bool),
        word_targets=words,
        negative_ids=words.flip(0),
        negative_padding=torch.zeros(2, 6, dtype=torch.bool),
        negative_of=torch.arange(2),
        clip_ids=["a", "b"],
    )
    factors = torch.tensor([[0.7, 1.2, 0.5], [1.3, 0.8, 1.4]])
    with torch.no_grad():
        plain, same = objective(batch), objective(replace(batch, jitter=torch.ones(2, 3)))
        jittered = objective(replace(batch, jitter=factors))
        by_hand = objective(replace(batch, frames=jitter_colours(batch.frames, factors)))
    for name in ("mlm", "vtm", "mvm"):
        assert plain[name].total == same[name].total != jittered[name].total == by_hand[name].total
