"""Open the model, items and frames of a task benchmark, and check for videos that the model was trained on."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from evilm.config.base import validate
from evilm.config.finetune_command import HeadConfig
from evilm.config.models import EViLMConfig
from evilm.config.stages import Benchmark
from evilm.errors import ConfigError
from evilm.eval.item_scoring import ItemJob
from evilm.io import storage
from evilm.items.item_tables import ItemsManifest
from evilm.items.seen_clips import SEEN_FILE, clip_hashes, is_seen, read_seen
from evilm.model.evilm_model import KIND
from evilm.model.pretrained import VOCAB, read_config
from evilm.model.task_model import TASK_FILE, TaskSpec, arch_for, masked_pieces, read_task
from evilm.shards import FrameManifest, check_num_frames
from evilm.tasks.task_inputs import variant
from evilm.text.item_texts import share_cut
from evilm.text.vocab import Vocab

PREDICTIONS = "predictions.parquet"
"""File of a benchmark's output with a row per item."""


@dataclass(frozen=True)
class TaskSubject:
    """A model, the items that it is scored on, and their frames."""

    config: Benchmark
    model: str
    spec: TaskSpec
    items: ItemsManifest
    frames: FrameManifest
    has_head: bool
    """True if the model was fine-tuned with a head for this kind of task, with these labels."""
    zero_shot: bool
    """True if the model was not trained on this task."""
    num_seen: int | None
    """Number of scored videos that the model was trained on; None if unknown."""
    arch: EViLMConfig
    """Sizes of the model, for the longest text and the frames of this task."""
    num_chosen: int = 0
    """Number of further ones that were its val clips."""
    pieces: Int[np.ndarray, " answer"] | None = None
    """Word piece of each answer for the MLM head, -1 for those of several, which it can't give; None: another head."""
    no_match: str = ""
    """Reason why the matching head can't score; '' if it can."""

    @property
    def embedded(self) -> bool:
        """Return True if the videos are the embedded corpus's, by its annotations' mark or by being the default."""
        return self.items.embedded or not (self.config.annotations or self.config.task_items)

    @property
    def ceiling(self) -> float:
        """Return the share of scored items whose answer the head can give."""
        if self.pieces is None:
            return self.items.splits[self.config.split].ceiling
        return float(self.can_answer(self.items.read(self.config.split)["label"].to_numpy()).mean())

    def can_answer(self, labels: Int[np.ndarray, " item"]) -> Bool[np.ndarray, " item"]:
        """Check for each item if the head can give its answer."""
        known = labels >= 0
        return known if self.pieces is None else known & (self.pieces[labels] >= 0)

    def job(self, split: str, probe: bool = False) -> ItemJob:
        """Return the work of a scoring actor."""
        cluster, batch = self.config.cluster, self.config.batch_items
        threads, places = max(1, int(cluster.cpus_per_worker)), (self.frames.uri, self.items.uri, split)
        return ItemJob(
            self.model, self.spec, *places, batch, probe, self.config.views, threads, cluster.uses_gpus, self.arch
        )

    def share_cut(self) -> float:
        """Compute the share of texts that are longer than the model's longest text, and so lose their end."""
        if self.spec.kind == "label":
            return 0.0
        table, masked = self.items.read(self.config.split), self.spec.head.type == "mlm"
        texts, options = table["text"].to_pylist(), table["options"].to_pylist()
        vocab = Vocab.load(storage.join(self.model, VOCAB))
        return share_cut(vocab, texts, options, self.arch.max_text_len, masked)


def open_subject(config: Benchmark, frames: FrameManifest, items: ItemsManifest) -> TaskSubject:
    """Find the model, and check that it has not seen what it is scored on.

    Raises:
        ConfigError: it has, the split has no items, or the model was fine-tuned with other answers.
    """
    root = storage.absolute(config.root)
    tuned = storage.join(root, f"{variant(config)}-model")
    default = tuned if storage.exists(storage.join(tuned, TASK_FILE)) else storage.join(root, "model")
    model = storage.absolute(config.model or default)
    own = read_task(model)
    has_head = own is not None and (own.kind, own.labels) == (items.kind, items.labels)
    if own is not None and own.kind == items.kind and not has_head and (own.task == items.task or own.kind == "answer"):
        what = "answers" if own.kind == "answer" else "classes"
        raise ConfigError(
            f"{model} was fine-tuned on {own.task} with {len(own.labels)} {what}, {items.uri} has "
            f"{len(items.labels)} others; score it on the items that it was trained with"
        )
    no_match = _no_match(config, model, own, items)
    head_type = {"answer": "mlm", "choice": "match"}.get(items.kind, "mlp")
    head = own.head if own is not None and has_head else HeadConfig.model_validate({"type": head_type})
    config, arch = _with_lengths(config, model)
    check_num_frames(frames, arch.num_frames)
    if config.views > 1 and frames.num_frames <= arch.num_frames:
        raise ConfigError(
            f"--views {config.views} draws other frames for each view, but {frames.uri} stores {frames.num_frames} per "
            f"clip and the model takes {arch.num_frames}; store more with --sampling.frames-stored "
            f"{2 * arch.num_frames} of shard_videos, or use --views 1"
        )
    if config.split not in items.splits or not items.splits[config.split].num_items:
        raise ConfigError(f"{items.uri} has no items of split {config.split!r}, only {', '.join(items.splits)}")
    spec = TaskSpec(config.task, items.kind, items.labels, head)
    zero_shot = own is None or own.task != items.task
    num_seen, num_chosen = _count_seen(config, model, frames, items)
    pieces = masked_pieces(spec, Vocab.load(storage.join(model, VOCAB)))
    return TaskSubject(
        config, model, spec, items, frames, has_head, zero_shot, num_seen, arch, num_chosen, pieces, no_match
    )


def _count_seen(config: Benchmark, model: str, frames: FrameManifest, items: ItemsManifest) -> tuple[int | None, int]:
    """Count the scored videos that the model was trained on, and further ones that were its val clips.

    Raises:
        ConfigError: there are any, or it is not known, and `allow_leak` was not given.
    """
    scored = set(items.read(config.split)["clip_id"].to_pylist())
    clip_ids, hashes = clip_hashes(frames, clip_ids=scored)
    known = read_seen(model)
    if known is None:
        if not config.allow_leak:
            raise ConfigError(
                f"{model} has no {SEEN_FILE}, so it is not known if it was trained on videos of {config.task}; use a "
                "model of this version, or --allow-leak true to get scores that are marked"
            )
        return None, 0
    is_trained, is_chosen = is_seen(known.trained, hashes), is_seen(known.chosen, hashes)
    is_chosen &= ~is_trained & (config.split != "val")  # val is there to choose by
    num_seen, num_chosen = int(is_trained.sum()), int(is_chosen.sum())
    if num_seen + num_chosen and not config.allow_leak:
        first = clip_ids[int((is_trained | is_chosen).argmax())]
        raise ConfigError(
            f"{model} was trained on {num_seen} and validated on {num_chosen} of the {len(scored)} videos of "
            f"{config.task}, split {config.split} (first: {first}), so its scores would be too high; use a model that "
            "has not seen them, or --allow-leak true to mark the scores as leaked"
        )
    return num_seen, num_chosen


def _with_lengths(config: Benchmark, model: str) -> tuple[Benchmark, EViLMConfig]:
    """Return the model's architecture for the task's texts and clips, and settings in which its own lengths are 0.

    So its scores are the same whether these are named or not.
    """
    own = validate(EViLMConfig, read_config(model, KIND)["config"], where=model)
    arch = arch_for(own, config.max_text_len, config.num_frames)
    same = [name for name in ("max_text_len", "num_frames") if getattr(arch, name) == getattr(own, name)]
    return config.model_copy(update=dict.fromkeys(same, 0)), arch


def _no_match(config: Benchmark, model: str, own: TaskSpec | None, items: ItemsManifest) -> str:
    """Return why the matching head can't score; '' if it can, or if another head does."""
    if own is None or own.kind != "retrieval" or own.trains_match:
        return ""
    why = f"{model} was fine-tuned with --head.match-weight 0, so its matching head does not fit the weights below it"
    if items.kind == "choice":
        raise ConfigError(f"{why}, and can't score choices; use a model that was fine-tuned with a matching loss")
    if config.pairwise:
        raise ConfigError(f"{why}, and can't score pairs; leave --pairwise out")
    return why
