"""Small models and batches for the tests on cards, real and pretended: neither Ray nor a video decoder is needed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evilm.config.model import StudentConfig, VideoTokenizerConfig
from evilm.config.runs import Pretrain, TrainTokenizer
from evilm.config.train import ObjectivesConfig, TrainConfig
from evilm.data.feed import Rows
from evilm.model.student import Student
from evilm.model.tokenizer import VideoTokenizer
from evilm.steps.base import Objective
from evilm.steps.batch import PretrainBatch, PretrainCollate, TokenizerBatch, TokenizerCollate
from evilm.steps.pretrain import PretrainObjective
from evilm.steps.tokenizer import TokenizerObjective
from evilm.text.build import train_wordpiece
from evilm.text.vocab import Vocab
from evilm.train.optim import Mean, make_optimizer
from evilm.train.precision import autocast
from evilm.train.update import Updater

PX, FRAMES, CODES = 64, 2, 20
REGIONS = FRAMES * (PX // 32) ** 2
COLOURS, SHAPES = ("red", "green", "blue", "white"), ("ball", "cube", "ring", "star", "bird")


def captions(clips: int) -> list[str]:
    """A caption for each clip, of different lengths; the 21st repeats the first."""
    return [f"a {COLOURS[n % 4]} {SHAPES[n % 5]} moves" + " slowly" * (n % 3) for n in range(clips)]


VOCAB = Vocab(train_wordpiece(captions(20), 100))


def student_config(**changes: Any) -> StudentConfig:
    """A student of 2 x 2 regions a frame."""
    settings = {
        "video_encoder": "edgenext_xx_small", "input_px": PX, "num_frames": FRAMES, "vocab_size": VOCAB.size,
        "max_words": 12, "text_dim": 32, "text_layers": 2, "text_heads": 2, "text_positions": 16, "dim": 48,
        "decoder_layers": 2, "decoder_heads": 3, "num_codes": CODES,
    }  # fmt: skip
    return StudentConfig.model_validate(settings | changes)


def tokenizer_config(codebook: dict[str, Any] | None = None, **changes: Any) -> VideoTokenizerConfig:
    """A tokenizer of 2 x 2 codes a frame."""
    settings = {
        "input_px": PX, "num_frames": FRAMES, "encoder_dim": 24, "encoder_layers": 1, "encoder_heads": 2,
        "decoder_dim": 24, "decoder_layers": 1, "decoder_heads": 2, "vocab_size": VOCAB.size,
        "codebook": {"num_codes": CODES, "code_dim": 8} | (codebook or {}),
    }  # fmt: skip
    return VideoTokenizerConfig.model_validate(settings | changes)


def pretrain_objective(objectives: dict[str, Any] | None = None, pool_clips: int = 4, **changes: Any) -> PretrainObjective:
    """A student with its losses, the same for the same arguments."""
    torch.manual_seed(0)
    return PretrainObjective(Student(student_config(**changes)), ObjectivesConfig(**(objectives or {})), pool_clips)


def tokenizer_objective(codebook: dict[str, Any] | None = None, **changes: Any) -> TokenizerObjective:
    """A tokenizer with its losses."""
    config = tokenizer_config(codebook, **changes)
    torch.manual_seed(0)
    return TokenizerObjective(VideoTokenizer(config), config)


def rows(clips: int, epoch: int = 0, mine: slice | None = None, px: int = PX, frames: int = FRAMES) -> Rows:
    """What a feed reads for one step: noise with the captions of `captions`."""
    rng = np.random.default_rng(epoch + 1)
    pixels = rng.integers(0, 256, (clips, frames, px, px, 3), dtype=np.uint8)
    codes = rng.integers(0, CODES, (clips, frames * (px // 32) ** 2)).astype(np.int64)
    mine = mine or slice(0, clips)
    names = [f"clip{n}" for n in range(clips)]
    return Rows(epoch, names, captions(clips), mine, pixels[mine].copy(), codes[mine].copy())


def pretrain_batch(
    clips: int = 6, epoch: int = 0, mine: slice | None = None, jitter: float = 0.0, negatives: str = "random"
) -> PretrainBatch:
    """A batch as training collates it, on the CPU."""
    collate = PretrainCollate(VOCAB, 0, 12, PX // 32, 0.3, 0.5, "block", jitter, negatives)  # type: ignore[arg-type]
    return collate(rows(clips, epoch, mine))


def tokenizer_batch(clips: int = 6, epoch: int = 0, mine: slice | None = None) -> TokenizerBatch:
    """A batch of the tokenizer's training, on the CPU."""
    return TokenizerCollate(VOCAB)(rows(clips, epoch, mine))


def settings(kind: type[TrainConfig] = Pretrain, **values: Any) -> Any:
    """Settings of a training in one process, `section__name=value`."""
    given = {name.replace("__", "."): value for name, value in values.items()}
    return kind().override({"schedule.batch_clips": 6, "optim.lr": 1e-3} | given)


def tokenizer_settings(**values: Any) -> Any:
    """The same for the tokenizer's."""
    return settings(TrainTokenizer, **values)


def make_updater(
    objective: Objective, config: TrainConfig, device: torch.device, world: int = 1, model: Any = None
) -> tuple[Updater, torch.optim.Optimizer, Mean | None]:
    """An objective on a device, ready to be updated, as `evilm.train.learner` puts it together without Ray."""
    objective.to(device)
    if config.cluster.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean = Mean(objective, config.optim.ema_decay) if config.optim.ema_decay else None
    optimizer = make_optimizer(objective, config.optim, config.cluster.fused)
    cast = autocast(config.cluster.precision, device)
    updater = Updater(objective, model or objective, optimizer, config, world, cast, device, mean)
    return updater, optimizer, mean


def train(
    objective: Objective, config: TrainConfig, device: str | torch.device, batches: Sequence[Sequence[Any]]
) -> tuple[list[dict[str, float]], torch.optim.Optimizer, Mean | None]:
    """Metrics of steps over the given batches, one list of parts for each step."""
    updater, optimizer, mean = make_updater(objective, config, torch.device(device))
    objective.train()
    metrics = []
    for step, parts in enumerate(batches):
        metrics.append(dict(updater.step(step, len(batches), range(len(parts)), list(parts), [0.0] * 4).metrics))
    return metrics, optimizer, mean
