"""Small models and batches for the tests on cards, real and pretended: neither Ray nor a video decoder is needed."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist

from evilm.config import presets
from evilm.config.models import EViLMConfig, VideoTokenizerConfig
from evilm.config.stages import Pretrain, TrainTokenizer
from evilm.config.training import ObjectivesConfig, TrainConfig
from evilm.dataloader.collate import PretrainBatch, PretrainCollate, TokenizerBatch, TokenizerCollate
from evilm.dataloader.loader import DataLoader, Rows, training_loader
from evilm.eval.eval_clips import choose_clips, make_blocks, open_shards
from evilm.eval.scoring import ScoreJob
from evilm.eval.zero_shot import distinct_captions
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.objective import Objective
from evilm.objectives.pretraining_objective import PretrainObjective
from evilm.objectives.tokenizer_objective import TokenizerObjective
from evilm.shards import CodesManifest, pair
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from evilm.train.micro_batches import on_device
from evilm.train.preemption import NUM_FLAGS
from evilm.train.timing import StepTimer
from evilm.train.train_state import TrainState
from evilm.train.train_step import TrainStep
from helpers import random_model, small_models
from helpers.random_model import captions

PX, FRAMES, CODES = 64, 2, 20
REGIONS = FRAMES * (PX // 32) ** 2
VOCAB = Vocab(train_wordpiece(captions(24), 100))


def student_config(**changes: Any) -> EViLMConfig:
    """A student of 2 x 2 regions a frame, for the vocabulary of `captions`."""
    text = {"vocab_size": VOCAB.size, "max_text_len": 12, "text_layers": 1, "text_positions": 16}
    return small_models.student_config(**{"num_frames": FRAMES, "decoder_layers": 1, **text, **changes})


def tokenizer_config(codebook: dict[str, Any] | None = None, **changes: Any) -> VideoTokenizerConfig:
    """A tokenizer of 2 x 2 codes a frame, for the same vocabulary."""
    sizes = {"num_frames": FRAMES, "vocab_size": VOCAB.size}
    return small_models.tokenizer_config({"num_codes": CODES} | (codebook or {}), **{**sizes, **changes})


def pretrain_objective(
    objectives: dict[str, Any] | None = None, pool_clips: int = 4, **changes: Any
) -> PretrainObjective:
    """A student with its losses, the same for the same arguments."""
    torch.manual_seed(0)
    return PretrainObjective(EViLMModel(student_config(**changes)), ObjectivesConfig(**(objectives or {})), pool_clips)


def tokenizer_objective(codebook: dict[str, Any] | None = None, **changes: Any) -> TokenizerObjective:
    """A tokenizer with its losses."""
    config = tokenizer_config(codebook, **changes)
    torch.manual_seed(0)
    return TokenizerObjective(VideoTokenizer(config), config)


def rows(clips: int, epoch: int = 0, mine: slice | None = None, px: int = PX, frames: int = FRAMES) -> Rows:
    """Return the rows that a data loader reads for one step: noise with the captions of `captions`."""
    rng = np.random.default_rng(epoch + 1)
    pixels = rng.integers(0, 256, (clips, frames, px, px, 3), dtype=np.uint8)
    codes = rng.integers(0, CODES, (clips, frames * (px // 32) ** 2)).astype(np.int64)
    mine = mine or slice(0, clips)
    names = [f"clip{n}" for n in range(clips)]
    texts = captions(clips)
    return Rows(epoch, names, texts, [[text] for text in texts], mine, pixels[mine].copy(), codes[mine].copy())


def pretrain_batch(
    clips: int = 6, epoch: int = 0, mine: slice | None = None, jitter: float = 0.0, negatives: str = "random"
) -> PretrainBatch:
    """A batch as training collates it, on the CPU."""
    collate = PretrainCollate(VOCAB, 0, 12, PX // 32, 0.3, 0.5, "block", jitter, negatives)  # type: ignore[arg-type]
    return collate(rows(clips, epoch, mine))


def tokenizer_batch(clips: int = 6, epoch: int = 0, mine: slice | None = None) -> TokenizerBatch:
    """A batch of the tokenizer's training, on the CPU."""
    return TokenizerCollate(VOCAB)(rows(clips, epoch, mine))


KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {}
"""Objective, batch and settings of the two trainings."""


def pretrain_case(size: str) -> tuple[PretrainObjective, PretrainBatch]:
    """A student in eval mode, so without dropout, and a batch: tiny, or the paper's model with two clips."""
    if size == "tiny":
        objective, batch = pretrain_objective(), pretrain_batch(jitter=0.3)
    else:
        arch = cast(Pretrain, presets.defaults("pretrain", "paper")).arch
        torch.manual_seed(0)
        student = EViLMModel(arch.model_copy(update={"video_weights": ""}), pretrained_video=False)
        objective = PretrainObjective(student, ObjectivesConfig())
        collate = PretrainCollate(VOCAB, 0, arch.max_text_len, arch.grid, 0.15, 0.4, "block")
        batch = collate(rows(2, px=arch.input_px, frames=arch.num_frames))
    return cast(PretrainObjective, objective.eval()), batch


class Held:
    """In place of a data loader: batches from memory."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches, self.order = batches, self
        self.num_steps = len(batches)

    def batches(self, start: int, end: int) -> Iterator[Any]:
        """Those of some steps."""
        return iter(self._batches[start:end])


def loader(folder: Path) -> DataLoader:
    """A data loader over shards of JPEGs, written to `folder`."""
    frames = random_model.make_frames(folder / "frames", 24, split="train")
    random_model.make_codes(folder / "codes", frames)
    codes = CodesManifest.load(str(folder / "codes" / "t0"))
    pairs = pair(frames, codes, "train", "t0", PX // 32, FRAMES)
    collate = PretrainCollate(VOCAB, 0, 12, PX // 32, 0.3, 0.5, "block", 0.3)
    schedule = settings(schedule__batch_clips=6, schedule__epochs=10).schedule
    return training_loader(pairs, schedule, collate, 0, 1, threads=2)


def score_job(folder: Path) -> ScoreJob:
    """Six clips against their captions, by a model that is written to `folder` with its shards."""
    random_model.make_model(folder / "model")
    frames = random_model.make_frames(folder / "frames", 6)
    random_model.make_codes(folder / "codes", frames)
    pairs = open_shards(frames, "test", CodesManifest.load(str(folder / "codes" / "t0")))
    clips = choose_clips(pairs, 6, 0)
    texts, caption_of = distinct_captions(clips)
    return ScoreJob(str(folder / "model"), make_blocks(pairs, clips, 4), texts, caption_of, ObjectivesConfig(), 0)


def settings(kind: type[TrainConfig] = Pretrain, **values: Any) -> Any:
    """Settings of a training in one process, `section__name=value`."""
    given = {name.replace("__", "."): value for name, value in values.items()}
    return kind().override({"schedule.batch_clips": 6, "optim.lr": 1e-3} | given)


def tokenizer_settings(**values: Any) -> Any:
    """The same for the tokenizer's."""
    return settings(TrainTokenizer, **values)


def make_state(
    objective: Objective, config: TrainConfig, device: str | torch.device, batches: Sequence[Any] = (), world: int = 1
) -> tuple[TrainState, TrainStep]:
    """An objective on a device, ready to be updated; `batches` are for a start that looks at data."""
    device = torch.device(device)
    state = TrainState(objective, config, device, dist.get_rank() if world > 1 else 0, world)
    first = (lambda count: [batch.to(device) for batch in batches[:count]]) if batches else lambda _: []
    return state, state.make_train_step(bool(batches), first, StepTimer(device))


def train(
    objective: Objective, config: TrainConfig, device: str | torch.device, batches: Sequence[Sequence[Any]]
) -> tuple[list[dict[str, float]], TrainState]:
    """Metrics of steps over the given batches, one list of micro-batches for each step."""
    state, train_step = make_state(objective, config, device)
    objective.train()
    return run(train_step, batches, torch.device(device)), state


def run(
    train_step: TrainStep,
    batches: Sequence[Sequence[Any]],
    device: torch.device,
    start: int = 0,
    num_steps: int = 0,
    numbers: range | None = None,
) -> list[dict[str, float]]:
    """Make steps as the training loop does, from step `start` of `num_steps` (the last one of these); their metrics."""
    outcomes = []
    stream = on_device((batch for micro_batches in batches for batch in micro_batches), device)
    for step, micro_batches in enumerate(batches, start):
        here = list(islice(stream, len(micro_batches)))
        mine = numbers or range(len(micro_batches))
        outcomes += train_step.step(step, num_steps or start + len(batches), mine, here, [0.0] * NUM_FLAGS)
    return [outcome.metrics for outcome in [*outcomes, *train_step.settle()]]


KINDS["student"] = pretrain_objective, pretrain_batch, settings
KINDS["tokenizer"] = tokenizer_objective, tokenizer_batch, tokenizer_settings
