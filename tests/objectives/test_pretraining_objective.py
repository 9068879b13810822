"""Losses and scores of pre-training: matching AUC, the weighted loss of a split, jittered frames."""

from dataclasses import replace

import torch

from evilm.config.training import ObjectivesConfig
from evilm.dataloader.collate import PretrainBatch
from evilm.dataloader.color_jitter import jitter_colours
from evilm.model.evilm_model import EViLMModel
from evilm.objectives.pretraining_objective import PretrainObjective, match_wins
from helpers.small_models import student_config

CLIPS = 5


def _student() -> EViLMModel:
    torch.manual_seed(0)
    return EViLMModel(student_config(num_frames=2, text_layers=1, decoder_layers=1)).eval()


def _batch(words: torch.Tensor, masked: torch.Tensor, mask: torch.Tensor) -> PretrainBatch:
    """Clips with captions `words`, of which `masked` ones are masked."""
    return PretrainBatch(
        frames=torch.randint(0, 256, (CLIPS, 2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator()),
        mask=mask,
        code_ids=torch.zeros(CLIPS, 8, dtype=torch.int64),
        input_ids=torch.where(masked, 4, words),
        padding_mask=torch.zeros(CLIPS, 6, dtype=torch.bool),
        word_targets=torch.where(masked, words, -1),
        negative_ids=words.roll(1, 0),
        negative_padding=torch.zeros(CLIPS, 6, dtype=torch.bool),
        negative_of=torch.arange(CLIPS),
        clip_ids=list("abcde"),
    )


def test_match_auc_counts_pairs_won() -> None:
    student = _student()
    words = torch.randint(5, 50, (CLIPS, 6), generator=torch.Generator().manual_seed(1))
    words[3] = words[1]  # two clips with the same caption are right answers to each other
    nothing, some = torch.zeros(CLIPS, 6, dtype=torch.bool), torch.zeros(CLIPS, 6, dtype=torch.bool)
    some[:, 2] = True
    masks = torch.zeros(2, CLIPS, 2, 2, 2, dtype=torch.bool)
    masks[1, :, :, 0] = True
    with torch.no_grad():
        won, compared = match_wins(student, _batch(words, nothing, masks[0]), CLIPS).tolist()
        masked = match_wins(student, _batch(words, some, masks[1]), CLIPS).tolist()
        assert masked == [won, compared], "masking changes nothing"
        video = student.encode_video(_batch(words, nothing, masks[0]).frames)
        text, padding = student.encode_text(words, torch.zeros(CLIPS, 6, dtype=torch.bool)), nothing
        match = torch.empty(CLIPS, CLIPS)
        for clip in range(CLIPS):
            for caption in range(CLIPS):
                pair = student.decode(video[[clip]], text[[caption]], padding[[caption]])
                logits = student.match_logits(pair.cls)[0]
                match[clip, caption] = logits[1] - logits[0]
    expected = sum(
        float(match[own, own] > match[place])
        for own in range(CLIPS)
        for other in range(CLIPS)
        if other != own and {own, other} != {1, 3}
        for place in ((own, other), (other, own))
    )
    assert compared == 2 * (CLIPS * (CLIPS - 1) - 2)
    assert won == expected


def test_match_auc_compares_within_pools_and_needs_one() -> None:
    words = torch.arange(5, 5 + CLIPS * 6).view(CLIPS, 6)
    masked, mask = torch.zeros(CLIPS, 6, dtype=torch.bool), torch.zeros(CLIPS, 2, 2, 2, dtype=torch.bool)
    masked[:, 1], mask[:, :, 0] = True, True
    batch = _batch(words, masked, mask)
    with torch.no_grad():
        assert match_wins(_student(), batch, 2)[1] == 2 * (2 + 2), "pools of 2, 2 and 1"
        found = {}
        for pool in (0, 2):
            scores = PretrainObjective(_student(), ObjectivesConfig(), pool).eval().scores()
            scores.add(batch, torch.device("cpu"))
            found[pool] = scores.result([scores.state(), scores.state()])
    assert "match_auc" not in found[0]
    assert found[2].keys() - found[0].keys() == {"match_auc"}
    assert 0 <= found[2]["match_auc"] <= 1


def test_loss_of_a_split_is_weighted_like_that_of_a_step() -> None:
    objective = PretrainObjective(_student(), ObjectivesConfig(mlm_weight=2.0, vtm_weight=0.0, mvm_weight=0.5))
    objective.eval()
    words = torch.randint(5, 50, (CLIPS, 6), generator=torch.Generator().manual_seed(1))
    masked, mask = torch.zeros(CLIPS, 6, dtype=torch.bool), torch.zeros(CLIPS, 2, 2, 2, dtype=torch.bool)
    masked[:, 2], mask[:, :, 0] = True, True
    scores = objective.scores()
    with torch.no_grad():
        scores.add(_batch(words, masked, mask), torch.device("cpu"))
    found = scores.result([scores.state()])
    assert found["loss"] == 2.0 * found["mlm_loss"] + 0.5 * found["mvm_loss"]


def test_jitter_changes_frames_but_not_targets() -> None:
    objective = PretrainObjective(_student(), ObjectivesConfig()).eval()
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
