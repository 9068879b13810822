"""Pre-training of E-ViLM under Ray Train, Eq. 8."""

import logging
from typing import Any

import torch

from evilm import storage
from evilm.config.model import StudentConfig
from evilm.config.runs import Pretrain
from evilm.data.feed import Feed, evaluation_feed, training_feed
from evilm.errors import ShardError
from evilm.outputs import close_output, open_output
from evilm.shards import CodesManifest, FrameManifest, ShardPair, find_codes, pair
from evilm.steps.batch import PretrainCollate
from evilm.text.vocab import Vocab
from evilm.train.build import Inputs, build_missing

logger = logging.getLogger(__name__)

OBJECTIVES_FILE = "pretrain.json"


def pretrain(config: Pretrain) -> dict[str, Any]:
    """Pre-train the student, building first what was not named; or reuse the model that stands at `out`.

    Returns:
        The summary: fingerprints, steps, losses and accuracies of train and val, seconds.

    Raises:
        ShardError: codes of another tokenizer, another grid or other frames.
        ConfigError: settings that do not fit the inputs.
    """
    out = storage.absolute(config.out or storage.join(config.root, "model"))
    inputs = build_missing(config)
    frames, codes = open_pairs(inputs, config.arch)
    places = {"frames": inputs.frames, "codes": codes.uri, "vocab": inputs.vocab, "tokenizer": inputs.tokenizer}
    config = config.model_copy(update={**places, "out": out})
    vocab = Vocab.load(config.vocab)
    prints = {"frames": frames.fingerprint, "codes": codes.fingerprint, "vocab": vocab.fingerprint}
    prints["tokenizer"] = codes.tokenizer
    if done := open_output(config, out, prints):
        return done | {"reused": True}
    from evilm.model.student import Student
    from evilm.train.fit import fit

    result = fit(config, "pretrain", "evilm.train.pretrain:build_task", out, prints)
    summary = {
        "out": out,
        "inputs": prints,
        "parameters": sum(p.numel() for p in Student.from_pretrained(out).parameters()),
        "clips": frames.splits,
        **result,
    }
    return close_output(out, summary)


def open_pairs(inputs: Inputs, arch: StudentConfig) -> tuple[FrameManifest, CodesManifest]:
    """Frames and codes, checked to belong to each other, to the tokenizer and to the model's grid.

    Raises:
        ShardError: they don't, saying which.
    """
    from evilm.model.tokenizer import VideoTokenizer

    frames = FrameManifest.load(inputs.frames)
    tokenizer = VideoTokenizer.from_pretrained(inputs.tokenizer).fingerprint()
    codes = CodesManifest.load(find_codes(inputs.codes, tokenizer))
    pairs = pair(frames, codes, "train", tokenizer, arch.grid, arch.num_frames)
    if not pairs:
        raise ShardError(
            f"{inputs.frames} holds no clips of the split train, only {frames.splits}; shard with --split train"
        )
    return frames, codes


def build_task(settings: dict[str, Any]) -> "PretrainTask":
    """The task from what `fit` sent."""
    return PretrainTask(Pretrain.model_validate(settings))


class PretrainTask:
    """The student's objective and feeds."""

    def __init__(self, settings: Pretrain) -> None:
        self.settings = settings
        self._vocab = Vocab.load(settings.vocab)
        self._frames = FrameManifest.load(settings.frames)
        self._codes = CodesManifest.load(settings.codes)  # the driver has found the folder of the tokenizer's codes
        sizes = {"vocab_size": self._vocab.size, "num_codes": self._codes.num_codes}
        self.arch: StudentConfig = settings.arch.model_copy(update=sizes)

    def objective(self) -> Any:
        """A fresh student with the losses of Eq. 8."""
        from evilm.model.student import Student
        from evilm.steps.pretrain import PretrainObjective

        return PretrainObjective(Student(self.arch), self.settings.objectives)

    def train_feed(self, rank: int, world: int) -> Feed:
        """Frames, codes, masks and negatives of the train split."""
        return training_feed(self._pairs("train"), self.settings.schedule, self._collate(), rank, world)

    def eval_feed(self, rank: int, world: int) -> Feed | None:
        """The same of the val split, each clip once and always masked the same way."""
        return evaluation_feed(self._pairs("val"), self.settings.schedule, self._collate(), rank, world)

    def export(self, objective: Any) -> None:
        """The student, its vocabulary, and how it was masked."""
        with torch.no_grad():
            objective.student.save_pretrained(self.settings.out)
        self._vocab.save(storage.join(self.settings.out, "vocab"))
        settings = self.settings.objectives.model_dump(mode="json") | {"tokenizer": self._codes.tokenizer}
        storage.write_json(storage.join(self.settings.out, OBJECTIVES_FILE), settings)

    def _pairs(self, split: str) -> list[ShardPair]:
        return pair(self._frames, self._codes, split)

    def _collate(self) -> PretrainCollate:
        objectives, schedule = self.settings.objectives, self.settings.schedule
        return PretrainCollate(
            self._vocab,
            schedule.seed,
            self.arch.max_words,
            self.arch.grid,
            objectives.mlm_ratio,
            objectives.mask_ratio,
            objectives.mask_shape,
        )
