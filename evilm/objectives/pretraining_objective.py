"""The pre-training objective, Eq. 8: masked language modelling, video-text matching and masked video modelling.

The model encodes each clip once and each caption once. The matched pair (masked regions, masked words) is used by all
three losses; the mismatched pair, the same video encoding with another clip's caption, only by matching.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from evilm.config.training import ObjectivesConfig
from evilm.dataloader.collate import PretrainBatch
from evilm.dataloader.color_jitter import jitter_colours
from evilm.dataloader.masking import IGNORE
from evilm.model.evilm_model import EViLMModel
from evilm.model.losses import LossSum, mlm_loss, mvm_loss, vtm_loss
from evilm.objectives.objective import Objective, TargetCounts


class PretrainObjective(Objective):
    """E-ViLM with its three losses. Paper: Eq. 3 and 8, Sec. 3.4."""

    def __init__(self, student: EViLMModel, settings: ObjectivesConfig, pool_clips: int = 0) -> None:
        """Join a model with its losses.

        An evaluation matches the captions of `pool_clips` clips with each other; 0 turns that off.
        """
        super().__init__()
        self.pool_clips = pool_clips
        self.student = student
        every = {"mlm": settings.mlm_weight, "vtm": settings.vtm_weight, "mvm": settings.mvm_weight}
        self.weights = {name: weight for name, weight in every.items() if weight > 0}
        heads = {"mlm": student.mlm_head, "vtm": student.match_head, "mvm": student.mvm_head}
        for name in every.keys() - self.weights.keys():
            heads[name].requires_grad_(False)  # otherwise DDP would wait for gradients that never come

    def forward(self, batch: PretrainBatch) -> dict[str, LossSum]:
        """Compute the losses with a weight; MLM and MVM on matched pairs only."""
        student = self.student
        frames = batch.frames if batch.jitter is None else jitter_colours(batch.frames, batch.jitter)
        video = student.encode_video(frames, batch.mask)
        text = student.encode_text(batch.input_ids, batch.padding_mask)
        matched = student.decode(video, text, batch.padding_mask)
        losses: dict[str, LossSum] = {}
        if "mlm" in self.weights:
            states, targets = _pick(matched.words, batch.mlm_positions), batch.word_targets.flatten()
            losses["mlm"] = mlm_loss(student.mlm_logits(states), targets.index_select(0, batch.mlm_positions))
        if "vtm" in self.weights:
            losses["vtm"] = self._matching(batch, video, matched.cls)
        if "mvm" in self.weights:
            states, codes = _pick(matched.regions, batch.masked_regions), batch.code_ids.flatten()
            losses["mvm"] = mvm_loss(student.mvm_logits(states), codes.index_select(0, batch.masked_regions))
        return losses

    def counts(self, batch: PretrainBatch) -> dict[str, int]:
        """Count the masked words, pairs and masked regions of a batch."""
        counts = {
            "mlm": len(batch.mlm_positions),
            "vtm": len(batch.frames) + len(batch.negative_of),
            "mvm": len(batch.masked_regions),
        }
        return {name: counts[name] for name in self.weights}

    def targets(self, batch: PretrainBatch) -> dict[str, Int[np.ndarray, " target"]]:
        """Return the masked words, whether each pair matches, and the codes of masked regions."""
        found = {
            "mlm": batch.word_targets.flatten()[batch.mlm_positions].numpy(),
            "vtm": np.repeat([1, 0], [len(batch.frames), len(batch.negative_of)]),
            "mvm": batch.code_ids.flatten()[batch.masked_regions].numpy(),
        }
        return {name: found[name] for name in self.weights}

    def _matching(self, batch: PretrainBatch, video: torch.Tensor, matched_cls: torch.Tensor) -> LossSum:
        """Compute the matching loss: one matched and one mismatched pair per clip, with one video encoding."""
        student, cls = self.student, matched_cls
        if len(batch.negative_of):
            text = student.encode_text(batch.negative_ids, batch.negative_padding)
            mismatched = student.decode(video.index_select(0, batch.negative_of), text, batch.negative_padding)
            cls = torch.cat([matched_cls, mismatched.cls])
        matched = torch.arange(len(cls), device=cls.device) < len(matched_cls)
        return vtm_loss(student.match_logits(cls), matched)

    def scores(self) -> "PretrainScores":
        """Create an accumulator of the three objectives' losses and accuracies."""
        return PretrainScores(self)


def _pick(
    states: Float[Tensor, "clip position dim"], positions: Int64[Tensor, " picked"]
) -> Float[Tensor, "picked dim"]:
    """Select states by flat position; the number of indices is known on the host, unlike a boolean mask's."""
    return states.flatten(0, 1).index_select(0, positions)


class PretrainScores:
    """Accumulates losses and hits over batches; their masks and negatives are the same in every evaluation."""

    def __init__(self, objective: PretrainObjective) -> None:
        self._objective = objective
        self._counts = dict.fromkeys(objective.weights, 0)
        self._sums: Tensor | None = None  # (loss, total and correct), float64, on the device
        self._match: Tensor | None = None  # comparisons won, comparisons
        self._num_codes = objective.student.config.num_codes
        self._codes = np.zeros(self._num_codes, dtype=np.int64)
        self._targets = TargetCounts()

    def add(self, batch: PretrainBatch, device: torch.device) -> None:
        """Score one batch."""
        self._codes += np.bincount(batch.code_ids.flatten().numpy(), minlength=self._num_codes)
        self._targets.add(self._objective.targets(batch))
        batch = batch.to(device)
        # `forward` bypasses a compiled `__call__`, which would be compiled again for eval mode on ranks with a batch.
        losses = self._objective.forward(batch)
        for name, loss in losses.items():
            self._counts[name] += loss.num_items
        sums = torch.stack([torch.stack([loss.total.double(), loss.correct.double()]) for loss in losses.values()])
        self._sums = sums if self._sums is None else self._sums + sums
        if self._objective.pool_clips:
            wins = match_wins(self._objective.student, batch, self._objective.pool_clips)
            self._match = wins if self._match is None else self._match + wins

    def state(self) -> dict[str, Any]:
        """Return total, count and hits by objective, and how often each code and each target occurred."""
        rows = [[0.0, 0.0]] * len(self._counts) if self._sums is None else self._sums.tolist()
        sums = {name: [row[0], self._counts[name], row[1]] for name, row in zip(self._counts, rows, strict=True)}
        match = np.zeros(2) if self._match is None else self._match.cpu().numpy()
        return {"sums": sums, "codes": self._codes, "targets": dict(self._targets.by_loss), "match": match}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """Compute metrics from the states of all workers.

        These are mean loss and accuracy by objective, and `loss`, their weighted sum as in training. `mlm_chance`,
        `vtm_chance` and `mvm_chance` are the accuracies of always predicting the most frequent target. `code_usage` is
        the share of codes that occur in the clips. `match_auc` is the probability that a clip and its own caption score
        higher than the clip with another caption, or the caption with another clip.
        """
        metrics: dict[str, float] = {}
        for name in self._objective.weights:
            total, count, correct = (sum(state["sums"][name][k] for state in states) for k in range(3))
            metrics[f"{name}_loss"] = total / max(1.0, count)
            metrics[f"{name}_accuracy"] = correct / max(1.0, count)
        weights = self._objective.weights
        loss = sum(weight * metrics[f"{name}_loss"] for name, weight in weights.items())
        targets = TargetCounts()
        for state in states:
            targets.update(state["targets"])
        codes = {"code_usage": float((np.sum([state["codes"] for state in states], axis=0) > 0).mean())}
        won, compared = np.sum([state["match"] for state in states], axis=0)
        matched = {"match_auc": float(won / compared)} if compared else {}
        return {"loss": loss} | metrics | targets.chance() | codes | matched


def match_wins(student: EViLMModel, batch: PretrainBatch, pool_clips: int) -> Float[Tensor, "2"]:
    """Match each clip of a pool with each caption of that pool, without masking.

    Returns:
        Comparisons won by the right pair, with ties as half, and all comparisons (float64, on the device). Each clip
        compares its own caption with every other text, each caption its own clip with every other clip. Their ratio
        does not depend on the size of the pools.
    """
    found = torch.zeros(2, dtype=torch.float64, device=batch.frames.device)
    input_ids = torch.where(batch.word_targets != IGNORE, batch.word_targets, batch.input_ids)
    for start in range(0, len(batch.frames), pool_clips):
        pool = slice(start, start + pool_clips)
        words, padding = input_ids[pool], batch.padding_mask[pool]
        videos, texts = student.encode_video(batch.frames[pool]), student.encode_text(words, padding)
        rows = []
        for video in videos:
            logits = student.match_logits(student.decode(video.expand(len(words), -1, -1), texts, padding).cls)
            rows.append(logits[:, 1] - logits[:, 0])
        scores = torch.stack(rows).float()  # clip x caption
        others = (words[:, None] != words[None]).any(-1)  # an equal caption is not a wrong answer
        for own in (scores.diagonal()[:, None], scores.diagonal()[None]):
            ahead = (own > scores).double() + 0.5 * (own == scores).double()
            found += torch.stack([(ahead * others).sum(), others.sum().double()])
    return found
