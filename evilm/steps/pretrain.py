"""Pre-training, Eq. 8: masked language modelling, video-text matching, masked video modelling in one step.

The student encodes each clip once and each caption once. The matched pair (hidden regions, hidden words) serves all
three objectives; the mismatched pair, the same video encoding with another clip's caption, serves matching alone.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from evilm.config.train import ObjectivesConfig
from evilm.model.losses import IGNORE, LossSum, mlm_loss, mvm_loss, vtm_loss
from evilm.model.student import Student
from evilm.steps.base import Objective
from evilm.steps.batch import PretrainBatch


class PretrainObjective(Objective):
    """E-ViLM with its three losses. Paper: Eq. 3 and 8, Sec. 3.4."""

    def __init__(self, student: Student, settings: ObjectivesConfig) -> None:
        super().__init__()
        self.student = student
        every = {"mlm": settings.mlm_weight, "vtm": settings.vtm_weight, "mvm": settings.mvm_weight}
        self.weights = {name: weight for name, weight in every.items() if weight > 0}
        self.sparse = len(self.weights) < len(every)

    def forward(self, batch: PretrainBatch) -> dict[str, LossSum]:
        """The losses of the objectives that have a weight; MLM and MVM on matched pairs only."""
        student = self.student
        video = student.encode_video(batch.frames, batch.mask)
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
        self._objective: nn.Module = objective
        self._sums: dict[str, list[float]] = {}
        self._num_codes = objective.student.config.num_codes
        self._targets = np.zeros((2, self._num_codes), dtype=np.int64)  # all regions, hidden regions

    def add(self, batch: PretrainBatch, device: torch.device) -> None:
        """Score one batch."""
        for name, (total, count, correct) in self._objective(batch.to(device)).items():
            sums = self._sums.setdefault(name, [0.0, 0.0, 0.0])
            for index, value in enumerate((total, count, correct)):
                sums[index] += float(value)
        for row, code_ids in enumerate((batch.code_ids, batch.code_ids[batch.mask.flatten(1)])):
            self._targets[row] += np.bincount(code_ids.flatten().numpy(), minlength=self._num_codes)

    def state(self) -> dict[str, Any]:
        """Sum, count and hits by objective; how often each code was a target."""
        return {"sums": self._sums, "targets": self._targets}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """Mean loss and accuracy by objective, `loss` as their sum; of the codes `code_usage`, and `mvm_most_frequent`,
        the accuracy of always guessing the split's most frequent code: what MVM has to beat.
        """
        metrics: dict[str, float] = {}
        for name in {name: None for state in states for name in state["sums"]}:
            sums = [state["sums"][name] for state in states if name in state["sums"]]
            total, count, correct = (sum(part[k] for part in sums) for k in range(3))
            metrics[f"{name}_loss"] = total / max(1.0, count)
            metrics[f"{name}_accuracy"] = correct / max(1.0, count)
        losses = [value for name, value in metrics.items() if name.endswith("_loss")]
        everywhere, hidden = np.sum([state["targets"] for state in states], axis=0)
        codes = {
            "code_usage": float((everywhere > 0).mean()),
            "mvm_most_frequent": float(hidden.max() / max(1, hidden.sum())),
        }
        return {"loss": sum(losses)} | metrics | codes
