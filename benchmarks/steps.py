"""A training step as the workers of pre-training make it, outside Ray: for the benchmarks of steps."""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from stored import store_codes, store_frames, vocab
from torch.utils._python_dispatch import TorchDispatchMode

from evilm.config import presets
from evilm.config.models import VideoTokenizerConfig
from evilm.config.stages import Pretrain
from evilm.dataloader.collate import Batch, PretrainBatch
from evilm.dataloader.loader import DataLoader
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.step_macs import StepWork, work_of
from evilm.tasks.pretrain import PretrainTask
from evilm.text.vocab import Vocab
from evilm.train import train_state
from evilm.train.micro_batches import on_device
from evilm.train.optimizer import make_deterministic
from evilm.train.preemption import NUM_FLAGS
from evilm.train.timing import StepTimer

_GROUPS = 40
"""Row groups stored, more than a data loader remembers, so that it goes on reading."""
_AHEAD = 8
"""More batches than a data loader makes ahead."""
SIZES = {"tiny": "tiny", "full": "paper"}
"""Presets by the name of their size."""


def prepare(folder: Path, size: str, batch_clips: int, threads: int, precision: str) -> Pretrain:
    """Settings of a size with shards and codes that fit it, one row group for each step.

    Args:
        folder: where to put them.
        size: tiny or full.
        batch_clips: clips per step, also per row group.
        threads: of torch.
        precision: auto, fp32 or bf16.
    """
    config = cast(Pretrain, presets.defaults("pretrain", SIZES[size]))
    arch, coding = config.arch, config.build.train_tokenizer.arch
    frames = store_frames(
        folder / "frames", _GROUPS * batch_clips, arch.input_px, arch.num_frames, 10 * batch_clips, batch_clips
    )
    store_codes(folder / "codes", frames, arch.grid, coding.codebook.num_codes)
    _fill(vocab(), config.build.build_vocab.words.train_size).save(str(folder / "vocab"))
    return settings_of(size, batch_clips, threads, precision, folder)


def settings_of(size: str, batch_clips: int, threads: int, precision: str, folder: Path, workers: int = 1) -> Pretrain:
    """The settings that `prepare` returned for what lies in this folder."""
    places = {name: str(folder / name) for name in ("frames", "codes", "vocab")} | {"tokenizer": "none"}
    settings = {"schedule.batch_clips": batch_clips, "schedule.epochs": 1000, "arch.video_weights": ""}
    machine = {"cluster.num_workers": workers, "cluster.cpus_per_worker": threads, "cluster.precision": precision}
    config = cast(Pretrain, presets.defaults("pretrain", SIZES[size]))
    return config.override(places | settings | machine | {"cluster.gpus_per_worker": float(torch.cuda.is_available())})


def _fill(small: Vocab, size: int) -> Vocab:
    """The vocabulary with entries that no caption has, up to `size`: the model's table shall be of full size."""
    missing = range(max(0, size - small.size))
    return Vocab([*small.pieces, *(f"filler{number}" for number in missing)])


class Learner:
    """One worker's model, data loader and updates, as `evilm.train.trainer` puts them together."""

    def __init__(self, config: Pretrain, rank: int = 0, world: int = 1) -> None:
        """A worker's; with `world` above 1 inside Ray Train, where the process group stands."""
        config = config.with_precision()
        self.settings, self.task = config, PretrainTask(config)
        self.device = torch.device("cuda" if config.cluster.uses_gpus else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(max(1, round(config.cluster.cpus_per_worker)))
            make_deterministic()
        torch.manual_seed(config.schedule.seed)
        self.timer = StepTimer(self.device)
        trained = train_state.TrainState(self.task.objective(), config, self.device, rank, world)
        self.objective, self.autocast = trained.objective, trained.autocast
        self._updater = trained.make_train_step(False, lambda count: [], self.timer)
        self._parts = range(rank, rank + 1)
        self.loader = self.open_feed(config, rank, world)
        self._step = self._fed = 0

    def open_feed(self, config: Pretrain, rank: int = 0, world: int = 1) -> DataLoader:
        """The data loader of a training with these settings, in page-locked memory where the step runs on a GPU."""
        loader = PretrainTask(config).train_loader(rank, world)
        if self.device.type == "cuda":
            loader.finish = Batch.pin_memory
        return loader

    @property
    def precision(self) -> str:
        """What the step computes in."""
        return self.settings.cluster.precision

    def train(self, batch: PretrainBatch) -> None:
        """One update; returns when it is done."""
        self.train_all([batch])

    def train_all(self, batches: Iterable[PretrainBatch]) -> None:
        """A step for each batch, as a training makes them; returns when all are done."""
        self.queue(batches)
        self._updater.settle()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def queue(self, batches: Iterable[PretrainBatch]) -> None:
        """A step for each batch; on a GPU they are only queued, and nothing waits for it."""
        for batch in on_device(batches, self.device, self.timer):
            self._updater.step(self._step, 1_000_000, self._parts, [batch], [0.0] * NUM_FLAGS)
            self._step += 1

    def held(self, count: int) -> list[PretrainBatch]:
        """Batches on the device, in memory of their own: the data loader uses its buffers again."""
        stream = self.loader.batches(0, count)
        return [replace(batch, frames=batch.frames.clone()).to(self.device) for batch in stream]

    def fed(self, count: int) -> Iterator[PretrainBatch]:
        """One batch of the data loader to warm up with, then `count`; it works ahead to the last, as there are more."""
        end = self._fed + 1 + count + _AHEAD
        stream = self.loader.batches(self._fed, end)
        self._fed = end
        with closing(cast(Generator, stream)):
            yield from islice(stream, 1 + count)

    def work(self, num_words: int) -> StepWork:
        """What a step computes, per clip."""
        tokenizer = self.settings.build.train_tokenizer.arch
        return work_of(self.task.arch, tokenizer, self.settings.objectives, num_words)


def make_tokenizer(config: VideoTokenizerConfig, device: torch.device) -> VideoTokenizer:
    """A video tokenizer with random weights, as it makes labels: without its decoder."""
    tokenizer = VideoTokenizer(config.model_copy(update={"encoder_weights": ""}))
    tokenizer.decoder = None
    return tokenizer.to(device).eval()


class Clock:
    """Wall and CPU seconds of this process between two calls."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """By the clock, and of all cores together."""
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


_VIEWS = {
    *("view", "t", "transpose", "expand", "unsqueeze", "squeeze", "slice", "select", "permute", "detach", "alias"),
    *("_unsafe_view", "reshape", "split", "split_with_sizes", "unbind", "as_strided", "narrow", "lift_fresh"),
}
"""Operations that compute nothing."""


class Kernels(TorchDispatchMode):
    """Counts the operations that compute something, each at least one kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in _VIEWS
        return func(*args, **(kwargs or {}))


def count_kernels(learner: Learner, batch: PretrainBatch) -> int:
    """Operations of a forward and a backward pass that compute; the optimizer's are few where they are fused."""
    train_state.objective.zero_grad(set_to_none=True)
    with Kernels() as counted, train_state.autocast:
        losses = train_state.objective(batch)
        torch.stack([loss.total.float() for loss in losses.values()]).sum().backward()
    return counted.count
