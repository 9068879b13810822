"""Pre-training, Eq. 8: masked language modelling, video-text matching, masked video modelling in one step.

The student encodes each clip once and each caption once. The matched pair (hidden regions, hidden words) serves all
three objectives; the mismatched pair, the same video encoding with another clip's caption, serves matching alone.
"""

from typing import Any

import numpy as np
import torch

from evilm.config.train import ObjectivesConfig
from evilm.model.losses import IGNORE, LossSum, mlm_loss, mvm_loss, vtm_loss
from evilm.model.student import Student
from evilm.steps.base import Objective
from evilm.steps.batch import PretrainBatch
from evilm.steps.colours import jitter_colours


class PretrainObjective(Objective):
    """E-ViLM with its three losses. Paper: Eq. 3 and 8, Sec. 3.4."""

    def __init__(self, student: Student, settings: ObjectivesConfig, pool_clips: int = 0) -> None:
        """Losses of a student.

        Args:
            student: the model.
            settings: weights of the losses.
            pool_clips: clips that an evaluation matches with each other's captions; 0 leaves that out.
        """
        super().__init__()
        self.pool_clips = pool_clips
        self.student = student
        every = {"mlm": settings.mlm_weight, "vtm": settings.vtm_weight, "mvm": settings.mvm_weight}
        self.weights = {name: weight for name, weight in every.items() if weight > 0}
        self.sparse = len(self.weights) < len(every)

    def forward(self, batch: PretrainBatch) -> dict[str, LossSum]:
        """The losses of the objectives that have a weight; MLM and MVM on matched pairs only."""
        student = self.student
        frames = batch.frames if batch.jitter is None else jitter_colours(batch.frames, batch.jitter)
        video = student.encode_video(frames, batch.mask)
        text = student.encode_text(batch.word_ids, batch.word_padding)
        matched = student.decode(video, text, batch.word_padding)
        losses: dict[str, LossSum] = {}
        if "mlm" in self.weights:
            asked = batch.word_targets != IGNORE
            losses["mlm"] = mlm_loss(student.mlm_logits(matched.words[asked]), batch.word_targets[asked])
        if "vtm" in self.weights:
            losses["vtm"] = self._matching(batch, video, matched.cls)
        if "mvm" in self.weights:
            hidden = batch.mask.flatten(1)
            losses["mvm"] = mvm_loss(student.mvm_logits(matched.regions[hidden]), batch.code_ids[hidden])
        return losses

    def counts(self, batch: PretrainBatch) -> dict[str, int]:
        """Hidden words, pairs, and hidden regions of a batch."""
        counts = {
            "mlm": int((batch.word_targets != IGNORE).sum()),
            "vtm": len(batch.frames) + len(batch.negative_of),
            "mvm": int(batch.mask.sum()),
        }
        return {name: counts[name] for name in self.weights}

    def _matching(self, batch: PretrainBatch, video: torch.Tensor, matched_cls: torch.Tensor) -> LossSum:
        """One matched and one mismatched pair per clip; the video encoding is shared."""
        student, cls = self.student, matched_cls
        if len(batch.negative_of):
            text = student.encode_text(batch.negative_ids, batch.negative_padding)
            mismatched = student.decode(video[batch.negative_of], text, batch.negative_padding)
            cls = torch.cat([matched_cls, mismatched.cls])
        matched = torch.arange(len(cls), device=cls.device) < len(matched_cls)
        return vtm_loss(student.match_logits(cls), matched)

    def scores(self) -> "PretrainScores":
        """Losses and accuracies of the three objectives on a split."""
        return PretrainScores(self)


class PretrainScores:
    """Sums the losses of batches whose masks and negatives are the same in every evaluation."""

    def __init__(self, objective: PretrainObjective) -> None:
        self._objective = objective
        self._sums: dict[str, list[float]] = {}
        self._match = np.zeros(2)  # comparisons won, comparisons
        self._num_codes = objective.student.config.num_codes
        self._targets = np.zeros((2, self._num_codes), dtype=np.int64)  # all regions, hidden regions

    def add(self, batch: PretrainBatch, device: torch.device) -> None:
        """Score one batch."""
        for name, (total, count, correct) in self._objective(batch.to(device)).items():
            sums = self._sums.setdefault(name, [0.0, 0.0, 0.0])
            for index, value in enumerate((total, count, correct)):
                sums[index] += float(value)
        if self._objective.pool_clips:
            self._match += match_wins(self._objective.student, batch.to(device), self._objective.pool_clips)
        for row, code_ids in enumerate((batch.code_ids, batch.code_ids[batch.mask.flatten(1)])):
            self._targets[row] += np.bincount(code_ids.flatten().numpy(), minlength=self._num_codes)

    def state(self) -> dict[str, Any]:
        """Sum, count and hits by objective; how often each code was a target."""
        return {"sums": self._sums, "targets": self._targets, "match": self._match}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """Mean loss and accuracy by objective, `loss` as their sum by the objectives' weights, as in training; of the
        codes `code_usage`, and `mvm_most_frequent`, the accuracy of always guessing the split's most frequent code:
        what MVM has to beat. `match_auc` is the chance that a clip and its own caption get a higher match score than
        the clip or the caption with another.
        """
        metrics: dict[str, float] = {}
        for name in {name: None for state in states for name in state["sums"]}:
            sums = [state["sums"][name] for state in states if name in state["sums"]]
            total, count, correct = (sum(part[k] for part in sums) for k in range(3))
            metrics[f"{name}_loss"] = total / max(1.0, count)
            metrics[f"{name}_accuracy"] = correct / max(1.0, count)
        weights = self._objective.weights
        loss = sum(weights[name] * metrics[f"{name}_loss"] for name in weights if f"{name}_loss" in metrics)
        everywhere, hidden = np.sum([state["targets"] for state in states], axis=0)
        codes = {
            "code_usage": float((everywhere > 0).mean()),
            "mvm_most_frequent": float(hidden.max() / max(1, hidden.sum())),
        }
        won, compared = np.sum([state["match"] for state in states], axis=0)
        matched = {"match_auc": float(won / compared)} if compared else {}
        return {"loss": loss} | metrics | codes | matched


def match_wins(student: Student, batch: PretrainBatch, pool_clips: int) -> tuple[float, int]:
    """Matching with nothing hidden: each clip against each caption of its pool of the batch.

    Returns:
        Comparisons won by the right pair, ties counting half, and comparisons: the right caption against each other
        text for its clip, and the right clip against each other for its caption. Their ratio does not depend on the
        size of pools.
    """
    won, compared = 0.0, 0
    word_ids = torch.where(batch.word_targets != IGNORE, batch.word_targets, batch.word_ids)
    for start in range(0, len(batch.frames), pool_clips):
        pool = slice(start, start + pool_clips)
        words, padding = word_ids[pool], batch.word_padding[pool]
        videos, texts = student.encode_video(batch.frames[pool]), student.encode_text(words, padding)
        rows = []
        for video in videos:
            logits = student.match_logits(student.decode(video.expand(len(words), -1, -1), texts, padding).cls)
            rows.append(logits[:, 1] - logits[:, 0])
        scores = torch.stack(rows).float()  # clip x caption
        others = (words[:, None] != words[None]).any(-1)  # equal captions are no wrong answers
        for own in (scores.diagonal()[:, None], scores.diagonal()[None]):
            ahead = (own > scores).float() + 0.5 * (own == scores).float()
            won += float(ahead[others].sum())
            compared += int(others.sum())
    return won, compared
