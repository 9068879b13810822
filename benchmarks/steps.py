"""Run the training step of a pre-training worker outside Ray, for the step benchmarks."""

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
"""Stored row groups, more than a data loader caches, so that it keeps reading."""
_AHEAD = 8
"""More batches than a data loader prepares ahead."""
SIZES = {"tiny": "tiny", "full": "paper"}
"""Presets by size."""


def prepare(folder: Path, size: str, batch_clips: int, threads: int, precision: str) -> Pretrain:
    """Create shards and codes for a size, one row group per step, and return its settings.

    Args:
        folder: folder for shards and codes.
        size: tiny or full.
        batch_clips: clips per step and per row group.
        threads: torch threads.
        precision: auto, fp32 or bf16.
    """
    config = cast(Pretrain, presets.defaults("pretrain", SIZES[size]))
    arch, coding = config.arch, config.train_tokenizer.arch
    frames = store_frames(
        folder / "frames", _GROUPS * batch_clips, arch.input_px, arch.num_frames, 10 * batch_clips, batch_clips
    )
    store_codes(folder / "codes", frames, arch.grid, coding.codebook.num_codes)
    _fill(vocab(), config.build_vocab.words.train_size).save(str(folder / "vocab"))
    return settings_of(size, batch_clips, threads, precision, folder)


def settings_of(size: str, batch_clips: int, threads: int, precision: str, folder: Path, workers: int = 1) -> Pretrain:
    """Return the settings for a folder created by `prepare`."""
    places = {name: str(folder / name) for name in ("frames", "codes", "vocab")} | {"tokenizer": "none"}
    settings = {"schedule.batch_clips": batch_clips, "schedule.epochs": 1000, "arch.video_weights": ""}
    machine = {"cluster.num_workers": workers, "cluster.cpus_per_worker": threads, "cluster.precision": precision}
    config = cast(Pretrain, presets.defaults("pretrain", SIZES[size]))
    return config.override(places | settings | machine | {"cluster.gpus_per_worker": float(torch.cuda.is_available())})


def _fill(small: Vocab, size: int) -> Vocab:
    """Fill the vocabulary with unused entries up to `size`, for a word table of full size."""
    missing = range(max(0, size - small.size))
    return Vocab([*small.pieces, *(f"filler{number}" for number in missing)])


class TrainingWorker:
    """One worker's model, data loader and updates, combined as in `evilm.train.trainer`."""

    def __init__(self, config: Pretrain, rank: int = 0, world: int = 1) -> None:
        """Build one worker's; `world` above 1 requires the process group of Ray Train."""
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
        self._train_step = trained.make_train_step(False, lambda count: [], self.timer)
        self._micro_batches = range(rank, rank + 1)
        self.loader = self.open_loader(config, rank, world)
        self._step = self._fed = 0

    def open_loader(self, config: Pretrain, rank: int = 0, world: int = 1) -> DataLoader:
        """Open the data loader of a training with these settings, in page-locked memory if the step runs on a GPU."""
        loader = PretrainTask(config).train_loader(rank, world)
        if self.device.type == "cuda":
            loader.finish = Batch.pin_memory
        return loader

    @property
    def precision(self) -> str:
        """Return the precision of the step."""
        return self.settings.cluster.precision

    def train(self, batch: PretrainBatch) -> None:
        """Run one update and wait for it."""
        self.train_all([batch])

    def train_all(self, batches: Iterable[PretrainBatch]) -> None:
        """Run a step for each batch as in training, and wait for all of them."""
        self.queue(batches)
        self._train_step.settle()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def queue(self, batches: Iterable[PretrainBatch]) -> None:
        """Run a step for each batch; on a GPU, only queue them without waiting."""
        for batch in on_device(batches, self.device, self.timer):
            self._train_step.step(self._step, 1_000_000, self._micro_batches, [batch], [0.0] * NUM_FLAGS)
            self._step += 1

    def held(self, count: int) -> list[PretrainBatch]:
        """Copy batches to the device, each to its own memory, since the data loader reuses its buffers."""
        stream = self.loader.batches(0, count)
        return [replace(batch, frames=batch.frames.clone()).to(self.device) for batch in stream]

    def fed(self, count: int) -> Iterator[PretrainBatch]:
        """Yield one warm-up batch of the data loader, then `count`; there are more, so it prefetches to the end."""
        end = self._fed + 1 + count + _AHEAD
        stream = self.loader.batches(self._fed, end)
        self._fed = end
        with closing(cast(Generator, stream)):
            yield from islice(stream, 1 + count)

    def work(self, num_words: int) -> StepWork:
        """Count the work of a step per clip."""
        tokenizer = self.settings.train_tokenizer.arch
        return work_of(self.task.arch, tokenizer, self.settings.objectives, num_words)


def make_tokenizer(config: VideoTokenizerConfig, device: torch.device) -> VideoTokenizer:
    """Create a video tokenizer with random weights and without decoder, as used for labels."""
    tokenizer = VideoTokenizer(config.model_copy(update={"encoder_weights": ""}))
    tokenizer.decoder = None
    return tokenizer.to(device).eval()


class Clock:
    """Measures wall and CPU seconds of this process between two calls."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        """Return wall seconds and CPU seconds of all cores."""
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


_VIEWS = {
    *("view", "t", "transpose", "expand", "unsqueeze", "squeeze", "slice", "select", "permute", "detach", "alias"),
    *("_unsafe_view", "reshape", "split", "split_with_sizes", "unbind", "as_strided", "narrow", "lift_fresh"),
}
"""Operations without computation."""


class Kernels(TorchDispatchMode):
    """Counts the operations that compute something; each is at least one kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in _VIEWS
        return func(*args, **(kwargs or {}))


def count_kernels(worker: TrainingWorker, batch: PretrainBatch) -> int:
    """Count the computing operations of a forward and a backward pass; a fused optimizer adds only few."""
    worker.objective.zero_grad(set_to_none=True)
    with Kernels() as counted, worker.autocast:
        losses = worker.objective(batch)
        torch.stack([loss.total.float() for loss in losses.values()]).sum().backward()
    return counted.count
