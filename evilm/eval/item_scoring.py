"""Score the items of a downstream task with a pool of Ray Data actors, in order."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evilm.cluster import actor_options
from evilm.config.models import EViLMConfig
from evilm.config.resources import ActorPoolConfig, ScorerConfig
from evilm.dataloader.clip_reader import ClipAugmentation
from evilm.dataloader.item_collate import ItemBatch, ItemCollate
from evilm.dataloader.item_loader import ClipIndex, ItemLoader, ItemTable
from evilm.dataloader.sampler import EVAL_EPOCH, EvalSampler
from evilm.io import storage
from evilm.items.item_tables import ItemsManifest
from evilm.jobs.runner import our_error
from evilm.model.evilm_model import EViLMModel
from evilm.model.pretrained import VOCAB
from evilm.model.task_heads import RetrievalHead
from evilm.model.task_model import TaskModel, TaskSpec, masked_pieces, read_task
from evilm.model.warm_start import refit
from evilm.shards import FrameManifest
from evilm.text.vocab import Vocab

logger = logging.getLogger(__name__)

TOP = 5
"""Answers and classes that are kept of each item."""
FEATURES = ("regions", "cls", "encoder")
"""Features of a video for a linear probe: mean of the decoded regions, [CLS] of the decoder without a text, mean of the
encoded regions."""
_LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class ItemJob:
    """All that an actor needs; small, since it travels to each of them."""

    model: str
    spec: TaskSpec
    """Task to score; the model's own head is used if it is of this task."""
    frames: str
    items: str
    split: str
    batch_items: int
    probe: bool = False
    """Return the features for a linear probe."""
    views: int = 1
    """Random choices of frames over which scores are averaged; 1 shows the middle frames."""
    threads: int = 1
    use_gpu: bool = False
    arch: EViLMConfig | None = None
    """The model's, or that for texts and clips of other lengths; None: the model's."""


class ItemScorer:
    """A model that scores batches of items."""

    def __init__(self, job: ItemJob) -> None:
        """Load model and items."""
        torch.set_num_threads(job.threads)
        self._job, self._device = job, torch.device("cuda" if job.use_gpu else "cpu")
        self._model = open_model(job.model, job.spec, job.arch)
        self._model.student.to(self._device)
        self._model.head.to(self._device)
        clips = ClipIndex(FrameManifest.load(job.frames))
        items = ItemTable(ItemsManifest.load(job.items), job.split, clips)
        config, vocab = self._model.student.config, self._model.vocab
        collate = ItemCollate(vocab, config.max_text_len, job.spec.kind, masked_pieces(self._model.spec, vocab))
        augmentation = ClipAugmentation(num_frames=config.num_frames)
        self._loaders = [
            ItemLoader(
                items, clips, EvalSampler(items.groups, job.batch_items, len(items), epoch=epoch), collate, augmentation
            )
            for epoch in (range(job.views) if job.views > 1 else [EVAL_EPOCH])
        ]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Score the batch whose number is given; one row per item."""
        step = int(batch["batch"][0])
        shown = [items for loader in self._loaders for items in loader.batches(step, step + 1)]
        with torch.inference_mode():
            views = [self._score(items.to(self._device)) for items in shown]
        means = {name: torch.stack([view[name] for view in views]).mean(0) for name in views[0]}
        ids = {"item_id": np.array(shown[0].item_ids), "clip_id": np.array(shown[0].clip_ids)}
        return ids | {name: value.cpu().numpy() for name, value in self._finish(means).items()}

    def _score(self, items: ItemBatch) -> dict[str, Tensor]:
        if self._job.probe:
            return _probe_features(self._model.student, items)
        if isinstance(self._model.head, RetrievalHead):
            features = self._model.embed(items).float()
            return {"video": features[:, 0], "text": features[:, 1]}
        return {"probabilities": self._model.scores(items).float().softmax(-1)}

    def _finish(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is kept of the means over views."""
        if "video" in means:
            return means | {"video": functional.normalize(means["video"], dim=-1)}
        if "probabilities" not in means or self._job.spec.kind == "choice":
            return means
        probabilities = means["probabilities"]
        best = probabilities.topk(min(TOP, probabilities.shape[1]), dim=-1)
        return {"top": best.indices.int(), "probabilities": best.values}


def _probe_features(student: EViLMModel, items: ItemBatch) -> dict[str, Tensor]:
    """Compute the candidate probe features of each item's video."""
    encoded = student.encode_video(items.frames)
    decoded = student.decode(encoded, None)
    found: dict[str, Tensor] = {"regions": decoded.regions.mean(1), "cls": decoded.cls, "encoder": encoded.mean(1)}
    return {name: value.index_select(0, items.clip_of).float() for name, value in found.items()}


def open_model(uri: str, spec: TaskSpec, arch: EViLMConfig | None = None) -> TaskModel:
    """Load a model for a task: with the head that it was fine-tuned with for this task, else with its own heads.

    `arch` is that of the model, or for texts and clips of other lengths; None: as it is.
    """
    own, student = read_task(uri), EViLMModel.from_pretrained(uri)
    student = student if arch is None else refit(student, arch)
    if own is not None and (own.kind, own.labels) == (spec.kind, spec.labels):
        return TaskModel.from_pretrained(uri, student)
    model = TaskModel(student, spec, Vocab.load(storage.join(uri, VOCAB)))
    model.head.eval()
    return model


def score_items(job: ItemJob, num_items: int, cluster: ScorerConfig) -> Iterator[dict[str, np.ndarray]]:
    """Score all items of a split, a batch at a time, in the order of their clips whatever the number of actors.

    Raises:
        EvilmError: the model, the items or the shards can't be used.
    """
    import ray
    from ray.data import DataContext

    count = EvalSampler([[num_items]], job.batch_items, num_items).num_steps
    resources = cluster.model_dump(include={"num_workers", "cpus_per_worker", "gpus_per_worker"})
    options, _ = actor_options(ActorPoolConfig(memory_gb=0, **resources), count)
    settings = DataContext.get_current().execution_options
    before, settings.preserve_order = settings.preserve_order, True
    batches = ray.data.from_items([{"batch": number} for number in range(count)], override_num_blocks=count)
    settings.preserve_order = before  # the data set has a copy
    scored = batches.map_batches(ItemScorer, fn_constructor_args=(job,), batch_size=1, **options)
    began = reported = time.monotonic()
    done = 0
    try:
        found: Iterator[Any] = iter(scored.iter_batches(batch_size=None, batch_format="numpy"))
        for batch in found:
            done += len(batch["item_id"])
            if time.monotonic() - reported > _LOG_EVERY_S:
                reported, rate = time.monotonic(), done / (time.monotonic() - began)
                logger.info("scored %d of %d items, %.0f s left", done, num_items, (num_items - done) / rate)
            yield batch
    except Exception as error:  # Ray wraps what an actor raised in several layers of its own
        cause = our_error(error)
        if cause is None:
            raise
        raise cause from None
