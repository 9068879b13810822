"""Pre-train E-ViLM with Ray Train, Eq. 8."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from evilm.config.base import validate
from evilm.config.data import FramesConfig
from evilm.config.models import EViLMConfig
from evilm.config.stages import Pretrain
from evilm.config.training import ScheduleConfig
from evilm.dataloader.clip_reader import ClipAugmentation
from evilm.dataloader.collate import PretrainBatch, PretrainCollate
from evilm.dataloader.loader import DataLoader, evaluation_loader, training_loader
from evilm.dataloader.sampler import batch_sizes
from evilm.encode.verify_codes import audit_codes, require_agreement, require_resampler
from evilm.errors import ShardError
from evilm.io import outputs, storage
from evilm.items.seen_clips import clip_hashes, write_seen
from evilm.model.tokenizers.collapse import require_usage_of_labels
from evilm.shards import (
    CodesManifest,
    FrameManifest,
    ShardPair,
    Side,
    find_codes,
    open_side,
    pair,
    publish_side,
    read_columns,
)
from evilm.tasks.assessment import log_assessment
from evilm.tasks.publications import load_codes, load_frames
from evilm.tasks.training_run import TrainingRun
from evilm.text.vocab import Vocab
from evilm.tracking.mlflow_run import TrackedRun
from evilm.tracking.panel_log import NUM_CLIPS, PanelLog

if TYPE_CHECKING:
    from evilm.tasks.inputs import Inputs

logger = logging.getLogger(__name__)

_USUAL_WORDS = 20  # word pieces in a caption
_CAPTIONS = 2000  # read for the words that describe codes in panels


def pretrain(config: Pretrain) -> dict[str, Any]:
    """Pre-train the model, building missing inputs first, or reuse a finished model at `out`.

    Returns:
        The summary: fingerprints, steps, losses and accuracies of train and val, seconds.

    Raises:
        ShardError: the codes belong to another tokenizer, another grid or other frames.
        ConfigError: the settings do not fit the inputs.
        CollapseError: the codes use too little of the codebook.
    """
    from evilm.model.identity import model_fingerprint
    from evilm.tasks.inputs import build_missing  # imports the video decoders, which workers do not need

    config = config.resolved().with_precision()
    out = storage.absolute(config.out or storage.join(config.root, "model"))
    config = config.model_copy(update={"init": config.init and storage.absolute(config.init)})
    started_from = {"init": model_fingerprint(config.init)} if config.init else {}  # before hours of building inputs
    is_new = config.overwrite or not storage.exists(storage.join(out, outputs.CONFIG))
    check = partial(_check_data, config)  # of a new training: before hours of training a tokenizer for it
    inputs = build_missing(config, lambda frames: check(FrameManifest.load(frames)) if is_new else None)
    frames, codes = open_pairs(inputs, config, "" if config.overwrite else out)
    places = {"frames": inputs.frames, "codes": codes.uri, "vocab": inputs.vocab, "tokenizer": inputs.tokenizer}
    config = config.model_copy(update={**places, "out": out})
    vocab = Vocab.load(config.vocab)
    fingerprints = {"frames": frames.fingerprint, "codes": codes.fingerprint, "vocab": vocab.fingerprint}
    fingerprints |= {"tokenizer": codes.tokenizer} | started_from
    from evilm.model.evilm_model import WEIGHTS
    from evilm.model.inference import VOCAB, EViLM
    from evilm.model.pretrained import CONFIG
    from evilm.tracking.model_card import write_card
    from evilm.tracking.pyfunc_model import publish
    from evilm.train.launch import catch_up

    started: dict[str, Any] = {}

    def describe() -> dict[str, Any]:
        return {"out": out, "inputs": fingerprints, "clips": frames.splits} | started | _made(out)

    load, files = EViLM.from_pretrained, (WEIGHTS, CONFIG, VOCAB)
    training = TrainingRun(config, "pretrain", "pretrain", out, fingerprints, load, describe, files)
    with training.open(frames.uri, frames.num_clips("train"), frames.num_clips("val")) as output:
        done = output.done
        if done and training.is_published(done):
            catch_up(config, "pretrain", out, done)
            publish(config, out, done, output.run)
            return done | {"reused": True}
        if not done:
            if not is_new:
                check(frames)
            _audit(config, frames, codes)
            publish_side(frames, replace=False)
            publish_side(codes, replace=False)
            names = ["train", "val"] if config.schedule.eval_clips else ["train"]
            seen = [clip_hashes(frames, splits=[name])[1] for name in names]
            output.check()
            write_seen(out, seen[0], [config.init] if config.init else [], *seen[1:])
            started |= training.warm_start()
        summary = training.finish(output)
        output.check()
        write_card(out, config, summary)
        output.close(summary)
        publish(config, out, summary, output.run)
    return summary


def _check_data(config: Pretrain, frames: FrameManifest) -> None:
    """Check that the clips make a batch, and log what to expect of the training."""
    batch_sizes(frames.num_clips("train"), config.schedule.batch_clips, config.schedule.tail, config.num_micro_batches)
    log_assessment(config, frames)


def open_pairs(inputs: "Inputs", config: Pretrain, out: str = "") -> tuple[FrameManifest, CodesManifest]:
    """Open frames and codes, and check that they belong to each other, the tokenizer and the model.

    `out` is the output of a training that may have begun on earlier publications of them.

    Raises:
        ShardError: they do not belong together.
        CollapseError: the codes use too little of the codebook.
    """
    from evilm.model.tokenizers.base_tokenizer import load_tokenizer

    arch = config.arch
    frames = load_frames(out, inputs.frames)
    model = load_tokenizer(inputs.tokenizer)
    tokenizer = model.fingerprint()
    codes = load_codes(out, find_codes(inputs.codes, tokenizer, config.views), frames)
    require_resampler(codes)
    pairs = pair(frames, codes, "train", tokenizer, arch.grid, arch.num_frames)
    if not pairs:
        raise ShardError(
            f"{inputs.frames} holds no clips of the split train, only {frames.splits}; shard with --split train"
        )
    if not model.independent_frames and arch.num_frames != codes.num_frames:
        raise ShardError(
            f"{codes.uri} holds codes of {codes.num_frames} frames, which belong together, but arch.num_frames = "
            f"{arch.num_frames}: this tokenizer's codes depend on all frames of a clip; use "
            f"--arch.num-frames {codes.num_frames}, or shard as many frames as the model takes"
        )
    require_usage_of_labels(model.codebook, codes.histograms, codes.uri)
    return frames, codes


def _made(out: str) -> dict[str, Any]:
    """Describe the finished model at `out`."""
    from evilm.model.evilm_model import EViLMModel
    from evilm.model.identity import model_fingerprint

    parameters = sum(p.numel() for p in EViLMModel.from_pretrained(out).parameters())
    return {"parameters": parameters, "fingerprint": model_fingerprint(out)}


def _audit(config: Pretrain, frames: FrameManifest, codes: CodesManifest) -> None:
    """Encode a few training clips again, to find wrong labels before hours of training.

    Raises:
        ShardError: too few codes agree.
    """
    if not config.audit_clips:
        return
    from evilm.model.tokenizers.base_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer)
    found = audit_codes(frames, codes, tokenizer, config.audit_clips, config.schedule.seed, "train")
    require_agreement(found, config.audit_agreement, codes)
    logger.info("%d clips encoded again: %.2f %% of the codes agree", found.num_clips, 100 * found.agreement)


def build_task(settings: dict[str, Any]) -> "PretrainTask":
    """Build the task from the settings sent by `fit`."""
    return PretrainTask(Pretrain.model_validate(settings))


class PretrainTask:
    """Objective, loaders and export of pre-training."""

    def __init__(self, settings: Pretrain) -> None:
        self.settings = settings
        self._vocab = Vocab.load(settings.vocab)
        self._frames = FrameManifest.load(settings.frames)
        self._codes = CodesManifest.load(settings.codes)  # the driver has found this tokenizer's folder
        sizes = {"vocab_size": self._vocab.size, "num_codes": self._codes.num_codes}
        self.arch: EViLMConfig = settings.arch.model_copy(update=sizes)

    def objective(self) -> Any:
        """Build a model with the losses of Eq. 8, initialised randomly or from another model."""
        from evilm.objectives.pretraining_objective import PretrainObjective

        student, _ = self.start()
        return PretrainObjective(student, self.settings.objectives, self.settings.schedule.eval_pool_clips)

    def start(self) -> tuple[Any, Any]:
        """Build the model; if it starts from another one, report which weights it took."""
        from evilm.model.evilm_model import EViLMModel
        from evilm.model.warm_start import start_model

        init, codes = self.settings.init, self._codes.tokenizer
        return start_model(self.arch, init, self._vocab, codes) if init else (EViLMModel(self.arch), None)

    def train_loader(self, rank: int, world: int) -> DataLoader:
        """Load frames, codes, masks and negatives of the train split."""
        schedule, threads = self.settings.schedule, self.settings.cluster.num_loader_threads
        pairs, side, augmentation = self._pairs("train"), self._side("train"), self._augmentation()
        return training_loader(pairs, schedule, self._collate(), rank, world, augmentation, threads, side)

    def eval_loader(self, rank: int, world: int) -> DataLoader | None:
        """Load the same of the val split, each clip once and always with the same masks."""
        return self._evaluation("val", self.settings.schedule, rank, world, self.settings.micro_batch_clips)

    def _evaluation(
        self, split: str, schedule: ScheduleConfig, rank: int, world: int, micro_batch_clips: int
    ) -> DataLoader | None:
        pairs, threads = self._pairs(split), self.settings.cluster.num_loader_threads
        if not pairs:
            return None
        side, augmentation = self._side(split), self._augmentation()
        collate = self._collate()
        return evaluation_loader(pairs, schedule, collate, rank, world, micro_batch_clips, augmentation, threads, side)

    def panels(self, tracked: TrackedRun | None) -> PanelLog:
        """Create the log of pictures of predictions on a few clips of the val split, or of train without one."""
        schedule, settings = self.settings.schedule, self.settings
        few = schedule.model_copy(update={"eval_clips": NUM_CLIPS, "eval_pool_clips": 0})
        split = "val" if self._pairs("val") else "train"

        def batch() -> PretrainBatch | None:
            loader = self._evaluation(split, few, 0, 1, NUM_CLIPS)
            return next(iter(loader.batches(0, 1)), None) if loader else None

        def captions() -> list[str]:
            shards = self._frames.of_split("train")[:1]
            tables = [read_columns(storage.join(self._frames.uri, shard.file), ["captions"]) for shard in shards]
            return [own[0] for table in tables for own in table["captions"].slice(0, _CAPTIONS).to_pylist()]

        every, tokenizer = schedule.panel_every_steps, settings.tokenizer
        return PanelLog(settings.out, every, self._vocab, tokenizer, batch, tracked, split, captions)

    def forward_macs(self, objective: Any) -> float:
        """Count the model's forward MACs per clip, with captions of usual length."""
        from evilm.objectives.step_macs import step_macs

        return sum(step_macs(objective.student, self.settings.objectives, min(_USUAL_WORDS, self.arch.max_text_len)))

    def describe(self, folder: str, objective: Any) -> None:
        """Write settings, vocabulary, preprocessing and masking."""
        from evilm.model import pretrained
        from evilm.model.evilm_model import KIND
        from evilm.model.identity import OBJECTIVES_FILE
        from evilm.model.inference import save_rules
        from evilm.model.preprocess import Preprocessor

        sampling = validate(FramesConfig, self._frames.sampling, where=self._frames.uri)
        save_rules(folder, self._vocab, Preprocessor(sampling, self.arch.num_frames), self.arch)
        settings = self.settings.objectives.model_dump(mode="json") | {"tokenizer": self._codes.tokenizer}
        storage.write_json(storage.join(folder, OBJECTIVES_FILE), settings)
        pretrained.save_config(folder, KIND, objective.student.config)

    def export(self, objective: Any) -> None:
        """Write the model with its vocabulary, preprocessing and masking."""
        self.describe(self.settings.out, objective)
        with torch.no_grad():
            objective.student.save_pretrained(self.settings.out)

    def _pairs(self, split: str) -> list[ShardPair]:
        return pair(self._frames, self._codes, split)

    def _side(self, split: str) -> Side:
        return open_side(self._frames, split, self._codes)

    def _augmentation(self) -> ClipAugmentation:
        augment = self.settings.augment
        crop = augment.crop if augment.approximate else None
        return ClipAugmentation(self.settings.schedule.seed, self.arch.num_frames, self._codes.num_views, crop)

    def _collate(self) -> PretrainCollate:
        objectives, schedule = self.settings.objectives, self.settings.schedule
        return PretrainCollate(
            self._vocab,
            schedule.seed,
            self.arch.max_text_len,
            self.arch.grid,
            objectives.mlm_ratio,
            objectives.mask_ratio,
            objectives.mask_shape,
            self.settings.augment.jitter,
            objectives.negatives,
        )
