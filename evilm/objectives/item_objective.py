"""Objectives of downstream tasks: classify answers, classes and options; contrast videos with captions."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from evilm.dataloader.item_collate import ItemBatch
from evilm.model.evilm_model import PREFIX
from evilm.model.losses import LossSum, classification
from evilm.model.metrics import lenient_ranks
from evilm.model.task_model import TaskModel
from evilm.objectives.objective import Objective, ObjectiveScores

SCORE = "score"
"""Metric by which the best step of a fine-tuning is chosen: accuracy, or the mean recall of both directions."""
_RECALLS = (1, 5, 10)
_CAPTIONS_AT_A_TIME = 2048


class ItemObjective(Objective):
    """A model for a downstream task with its loss."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.student, self.head, self.model = model.student, model.head, model
        settings = model.spec.head
        for part in [*model.unused(), *(getattr(model.student, name) for name in settings.freeze)]:
            part.requires_grad_(False)
        if "video_encoder" in settings.freeze:
            model.student.video_projection.requires_grad_(False)
        if "text_encoder" in settings.freeze:
            model.student.text_projection.requires_grad_(False)
        self.weights = {model.spec.kind: 1.0}

    def lr_scale(self, name: str) -> float:
        """Return the factor of the learning rate: that of the head, or the decay of a layer's distance to the top."""
        settings, layers = self.model.spec.head, self.student.config.decoder_layers
        if name.startswith("head."):
            return settings.lr_scale
        block = name.removeprefix(f"{PREFIX}decoder.blocks.")
        if block != name:
            return settings.layer_decay ** (layers - 1 - int(block.split(".")[0]))
        is_head = name.startswith((f"{PREFIX}match_head", f"{PREFIX}mlm_head"))
        return 1.0 if is_head else settings.layer_decay**layers

    def forward(self, batch: ItemBatch) -> dict[str, LossSum]:
        """Compute the cross-entropy of the items with a label."""
        scores = self.model.scores(batch).index_select(0, batch.labelled)
        return {self.model.spec.kind: classification(scores, batch.labels.index_select(0, batch.labelled))}

    def counts(self, batch: ItemBatch) -> dict[str, int]:
        """Count the items with a label."""
        return {self.model.spec.kind: len(batch.labelled)}

    def targets(self, batch: ItemBatch) -> dict[str, Int[np.ndarray, " target"]]:
        """Return the labels of the items that have one."""
        return {self.model.spec.kind: batch.labels[batch.labelled].numpy()}

    def scores(self) -> ObjectiveScores:
        """Create an accumulator of loss and accuracy."""
        return ItemScores(self)


class ItemScores:
    """Accumulates loss and hits over the items of an evaluation, each of which counts once."""

    def __init__(self, objective: ItemObjective) -> None:
        self._objective = objective
        self._sums: Tensor | None = None
        self._counts = np.zeros(2, dtype=np.int64)  # items, items with a label

    def add(self, batch: ItemBatch, device: torch.device) -> None:
        """Score one batch."""
        (loss,) = self._objective.forward(batch.to(device)).values()
        sums = torch.stack([loss.total.double(), loss.correct.double()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts += batch.num_items, loss.num_items

    def state(self) -> dict[str, Any]:
        """Return sums and counts."""
        return {"sums": [0.0, 0.0] if self._sums is None else self._sums.tolist(), "counts": self._counts.tolist()}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the mean loss, and accuracy over all items and over those whose answer has a label."""
        loss, correct = np.sum([state["sums"] for state in states], axis=0)
        items, labelled = np.sum([state["counts"] for state in states], axis=0)
        accuracy = float(correct / max(1, items))
        metrics = {"loss": float(loss / max(1, labelled)), SCORE: accuracy, "accuracy": accuracy}
        return metrics | ({"accuracy_labelled": float(correct / max(1, labelled))} if labelled < items else {})


class RetrievalObjective(ItemObjective):
    """The symmetric contrastive loss over the global step, beside matching against captions of other videos.

    The contrastive loss compares all items of a step. Features of the whole step are computed without gradients first
    and gathered from all workers; the loss gives the gradient of each feature, and `forward` computes the features
    again and passes these gradients on. So micro-batches and workers change neither loss nor gradients.
    """

    def __init__(self, model: TaskModel) -> None:
        super().__init__(model)
        match = model.spec.head.match_weight
        self.weights = {"contrastive": 1.0} | ({"match": match} if match else {})
        self._rows = self._hits = self._gradients = torch.zeros(0)

    def embed(self, batch: ItemBatch) -> Float[Tensor, "item two embed"]:
        """Embed video and caption of each item."""
        return self.model.embed(batch)

    def cache(self, features: Float[Tensor, "item two embed"]) -> None:
        """Compute the loss over all items of the step and the gradients of their features."""
        features = features.detach().requires_grad_()
        with torch.enable_grad():
            losses, hits = contrast(features, self.model.spec.head.temperature)
            (self._gradients,) = torch.autograd.grad(losses.sum(), features)
        self._rows, self._hits = losses.detach(), hits

    def forward(self, batch: ItemBatch) -> dict[str, LossSum]:
        """Compute the losses of these items; the contrastive one carries the cached gradients of the whole step."""
        mine = slice(batch.first_item, batch.first_item + batch.num_items)
        video = self.student.encode_video(batch.frames)
        carrier = (self.model.embed_encoded(video, batch) * self._gradients[mine]).sum()
        total = self._rows[mine].sum() + carrier - carrier.detach()
        losses = {"contrastive": LossSum(total, batch.num_items, self._hits[mine].sum())}
        return losses | ({"match": self._match(video, batch)} if "match" in self.weights else {})

    def _match(self, video: Float[Tensor, "clip region dim"], batch: ItemBatch) -> LossSum:
        """Score each caption and its negatives; the right one comes first."""
        cls = self.model.decode_with(video.index_select(0, batch.clip_of), batch).cls
        logits = self.student.match_logits(cls)
        scores = (logits[:, 1] - logits[:, 0]).float()
        items = batch.num_items
        options = torch.cat([scores[:items, None], scores[items:].view(items, -1)], dim=1)
        return classification(options, torch.zeros_like(batch.labels))

    def counts(self, batch: ItemBatch) -> dict[str, int]:
        """Count the items."""
        return dict.fromkeys(self.weights, batch.num_items)

    def targets(self, batch: ItemBatch) -> dict[str, Int[np.ndarray, " target"]]:
        """Return nothing: what is to be found is a video or a caption of the step."""
        return {}

    def scores(self) -> ObjectiveScores:
        """Create an accumulator of features."""
        return RetrievalScores(self)


def contrast(
    features: Float[Tensor, "item two embed"], temperature: float
) -> tuple[Float[Tensor, " item"], Float[Tensor, " item"]]:
    """Return each item's contrastive loss, the mean of both directions, and 1 if its caption finds its video first."""
    videos, texts = features.unbind(1)
    logits = texts @ videos.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    to_video = F.cross_entropy(logits, own, reduction="none")
    to_text = F.cross_entropy(logits.T, own, reduction="none")
    return (to_video + to_text) / 2, (logits.detach().argmax(1) == own).float()


class RetrievalScores:
    """Collects the features of an evaluation, whose items are all compared with each other."""

    def __init__(self, objective: RetrievalObjective) -> None:
        self._objective = objective
        self._features: list[Tensor] = []
        self._clip_ids: list[str] = []
        self._item_ids: list[str] = []

    def add(self, batch: ItemBatch, device: torch.device) -> None:
        """Embed one batch."""
        self._features.append(self._objective.embed(batch.to(device)).float())
        self._clip_ids += batch.clip_ids
        self._item_ids += batch.item_ids

    def state(self) -> dict[str, Any]:
        """Return features with their clips."""
        features = torch.cat(self._features).cpu().numpy() if self._features else None
        return {"features": features, "clip_ids": self._clip_ids, "item_ids": self._item_ids}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the contrastive loss, and R@1, 5, 10 of captions to videos and back, each among all of val."""
        found = [state for state in states if state["features"] is not None]
        item_ids = [item for state in found for item in state["item_ids"]]
        order = np.argsort(np.array(item_ids), kind="stable")  # whatever the workers
        features = np.concatenate([state["features"] for state in found])[order]
        clip_ids = np.array([clip for state in found for clip in state["clip_ids"]])[order]
        _, first = np.unique(clip_ids, return_index=True)  # a caption each: other right ones would count as wrong
        losses, _ = contrast(torch.from_numpy(features[first]), self._objective.model.spec.head.temperature)
        metrics = recalls(features[:, 0], features[:, 1], clip_ids)
        return {"loss": float(losses.mean()), SCORE: float(np.mean(list(metrics.values())))} | metrics


def recalls(
    videos: Float[np.ndarray, "item embed"], texts: Float[np.ndarray, "item embed"], clip_ids: np.ndarray
) -> dict[str, float]:
    """Compute R@1, 5, 10 of each caption among all distinct videos, and of each video's best own caption among all."""
    _, first, video_of = np.unique(clip_ids, return_index=True, return_inverse=True)
    batches = [slice(start, start + _CAPTIONS_AT_A_TIME) for start in range(0, len(texts), _CAPTIONS_AT_A_TIME)]
    best, above = np.full(len(first), -np.inf), np.zeros(len(first))
    to_video = []
    for batch in batches:
        scores, own = texts[batch] @ videos[first].T, video_of[batch]
        np.maximum.at(best, own, scores[np.arange(len(own)), own])
        to_video.append(lenient_ranks(scores, own))
    for batch in batches:
        scores = texts[batch] @ videos[first].T
        scores[np.arange(len(scores)), video_of[batch]] = -np.inf  # a video's other captions are right too
        above += (scores > best).sum(0) + (scores == best).sum(0) / 2
    found = {}
    for name, places in (("t2v", np.concatenate(to_video)), ("v2t", 1 + above)):
        found |= {f"{name}_r{k}": float((places <= k).mean()) for k in _RECALLS}
    return found
