"""Train the video tokenizer with Ray Train."""

import logging
from typing import Any

import torch

from evilm.config.models import CodebookConfig, VideoTokenizerConfig
from evilm.config.stages import TrainTokenizer
from evilm.dataloader.clip_reader import ClipAugmentation
from evilm.dataloader.collate import TokenizerCollate
from evilm.dataloader.loader import DataLoader, evaluation_loader, training_loader
from evilm.dataloader.sampler import batch_sizes
from evilm.errors import ConfigError
from evilm.io import storage
from evilm.model.tokenizers.collapse import require_usage_on_val
from evilm.shards import FrameManifest, ShardPair, check_num_frames, open_side, publish_side
from evilm.tasks.publications import load_frames
from evilm.tasks.training_run import TrainingRun
from evilm.text.vocab import Vocab
from evilm.tracking.mlflow_run import TrackedRun

logger = logging.getLogger(__name__)


def train_tokenizer(config: TrainTokenizer) -> dict[str, Any]:
    """Train a tokenizer on the train split of frame shards, or reuse a finished one at `out`.

    Returns:
        The summary: fingerprint, steps, held-out code usage and word mAP, seconds.

    Raises:
        ConfigError: the settings do not fit the inputs.
        CollapseError: the finished tokenizer uses too little of its codebook on the val split. It is kept: a later run
            with the same settings and a lower `min_usage` accepts it.
    """
    for name in ("frames", "vocab", "out"):
        if not getattr(config, name):
            raise ConfigError(f"--{name} is missing; name the folder of the {name}")
    config = config.resolved().with_precision()
    places = {name: storage.absolute(getattr(config, name)) for name in ("frames", "vocab", "out")}
    config = config.model_copy(update=places | {"init": config.init and storage.absolute(config.init)})
    frames = load_frames("" if config.overwrite else config.out, config.frames)
    vocab = Vocab.load(config.vocab)
    check_num_frames(frames, config.arch.num_frames)
    inputs = {"frames": frames.fingerprint, "vocab": vocab.fingerprint}
    from evilm.model.identity import tokenizer_fingerprints
    from evilm.model.pretrained import CONFIG
    from evilm.model.tokenizers.semantic_vq import WEIGHTS, VideoTokenizer
    from evilm.train.launch import catch_up

    inputs |= tokenizer_fingerprints(config.init, "init") if config.init else {}
    started: dict[str, Any] = {}

    def describe() -> dict[str, Any]:
        facts = {"out": config.out, "inputs": inputs, "num_codes": config.arch.codebook.num_codes}
        return facts | started | {"fingerprint": VideoTokenizer.from_pretrained(config.out).fingerprint()}

    name, load = "train_tokenizer", VideoTokenizer.from_pretrained
    training = TrainingRun(config, name, name, config.out, inputs, load, describe, (WEIGHTS, CONFIG))
    with training.open(frames.uri, frames.num_clips("train"), frames.num_clips("val")) as output:
        done = output.done
        if done and training.is_published(done):
            catch_up(config, "train_tokenizer", config.out, done)
            _keep_min_usage(config)
            require_usage_on_val(config.arch.codebook, done, config.out)
            return done | {"reused": True}
        if not done:
            batch_sizes(
                frames.num_clips("train"), config.schedule.batch_clips, config.schedule.tail, config.num_micro_batches
            )
            publish_side(frames, replace=False)
            started |= training.warm_start()
        summary = output.close(training.finish(output))
        _keep_min_usage(config)
    require_usage_on_val(config.arch.codebook, summary, config.out)
    return summary


def _keep_min_usage(config: TrainTokenizer) -> None:
    """Write a changed `min_usage` to the finished tokenizer, from which later stages read it."""
    from evilm.model import pretrained

    place = storage.join(config.out, pretrained.CONFIG)
    content = storage.read_json(place)
    codebook = content.get("config", content)["codebook"]  # models of evilm before model_type have `config`
    if codebook.get("min_usage", CodebookConfig().min_usage) != config.arch.codebook.min_usage:
        codebook["min_usage"] = config.arch.codebook.min_usage
        storage.write_json(place, content)


def build_task(settings: dict[str, Any]) -> "TokenizerTask":
    """Build the task from the settings sent by `fit`."""
    return TokenizerTask(TrainTokenizer.model_validate(settings))


class TokenizerTask:
    """Objective, loaders and export of the tokenizer's training."""

    def __init__(self, settings: TrainTokenizer) -> None:
        self.settings = settings
        self._vocab = Vocab.load(settings.vocab)
        self._frames = FrameManifest.load(settings.frames)
        self.arch: VideoTokenizerConfig = settings.arch.model_copy(update={"vocab_size": self._vocab.size})

    def objective(self) -> Any:
        """Build a tokenizer with its losses, initialised randomly or from another tokenizer."""
        from evilm.model.warm_start import has_codebook
        from evilm.objectives.tokenizer_objective import TokenizerObjective

        tokenizer, report = self.start()
        settings = self.arch
        if report and has_codebook(report):  # k-means would overwrite it
            settings = settings.model_copy(update={"codebook": settings.codebook.model_copy(update={"init": "random"})})
        return TokenizerObjective(tokenizer, settings)

    def start(self) -> tuple[Any, Any]:
        """Build the tokenizer; if it starts from another one, report which weights it took."""
        from evilm.model.tokenizers.semantic_vq import VideoTokenizer
        from evilm.model.warm_start import start_tokenizer

        init = self.settings.init
        return start_tokenizer(self.arch, init, self._vocab) if init else (VideoTokenizer(self.arch), None)

    def train_loader(self, rank: int, world: int) -> DataLoader:
        """Load frames and caption words of the train split."""
        schedule, threads = self.settings.schedule, self.settings.cluster.num_loader_threads
        collate, augmentation, side = (
            TokenizerCollate(self._vocab),
            self._augmentation(),
            open_side(self._frames, "train"),
        )
        return training_loader(self._pairs("train"), schedule, collate, rank, world, augmentation, threads, side)

    def eval_loader(self, rank: int, world: int) -> DataLoader | None:
        """Load the same of the val split, each clip once."""
        settings, pairs = self.settings, self._pairs("val")
        if not pairs:
            return None
        schedule, threads, collate = (
            settings.schedule,
            settings.cluster.num_loader_threads,
            TokenizerCollate(self._vocab),
        )
        augmentation, side = self._augmentation(), open_side(self._frames, "val")
        return evaluation_loader(
            pairs, schedule, collate, rank, world, settings.micro_batch_clips, augmentation, threads, side
        )

    def panels(self, tracked: TrackedRun | None) -> None:
        """Return None: this task has no panels."""

    def forward_macs(self, objective: Any) -> float:
        """Count the forward MACs of encoder, codebook and word decoder per clip."""
        from evilm.objectives.step_macs import tokenizer_macs, word_decoder_macs

        return tokenizer_macs(self.arch, self.arch.num_frames) + word_decoder_macs(self.arch)

    def describe(self, folder: str, objective: Any) -> None:
        """Write settings and vocabulary beside a checkpoint."""
        objective.tokenizer.save_config(folder)
        self._vocab.save(storage.join(folder, "vocab"))

    def export(self, objective: Any) -> None:
        """Write the tokenizer with its settings and vocabulary."""
        with torch.no_grad():
            objective.tokenizer.save_pretrained(self.settings.out)
        self._vocab.save(storage.join(self.settings.out, "vocab"))

    def _augmentation(self) -> ClipAugmentation:
        return ClipAugmentation(self.settings.schedule.seed, self.arch.num_frames)

    def _pairs(self, split: str) -> list[ShardPair]:
        """List the shards of a split, without codes."""
        folder = self._frames.uri
        return [
            ShardPair(storage.join(folder, shard.file), "", shard.num_clips, shard.row_groups)
            for shard in self._frames.of_split(split)
        ]
