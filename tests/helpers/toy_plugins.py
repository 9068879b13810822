"""A video encoder, a video tokenizer and a training task as somebody else's package would bring them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from evilm.config.models import CodebookConfig
from evilm.config.stages import TrainTokenizer
from evilm.dataloader.clip_reader import ClipAugmentation
from evilm.dataloader.collate import Batch
from evilm.dataloader.loader import DataLoader, Rows, evaluation_loader, training_loader
from evilm.io import storage
from evilm.manifests.layouts import TableLayout
from evilm.model.losses import LossSum
from evilm.objectives.objective import Objective
from evilm.shards import FrameManifest, ShardPair, open_side

SIDE_PX = 32


FILMS = TableLayout(
    {"videoid": ("film",), "caption": ("plot",), "start": ("from_s",), "end": ("to_s",)},
    frozenset({"film", "plot", "from_s"}),
)


class MeanColourEncoder(nn.Module):
    """An encoder: the mean colour of each region, projected."""

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, name: str, weights: str, input_px: int) -> None:
        super().__init__()
        self.channels = 16
        self.projection = nn.Linear(3, self.channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors of regions."""
        return self.projection(nn.functional.avg_pool2d(pixels, SIDE_PX).permute(0, 2, 3, 1))


class BrightnessTokenizer:
    """A tokenizer: the brightness of each region, in 16 levels; nothing is learned."""

    num_frames, independent_frames, has_words = 4, True, False
    codebook = CodebookConfig(num_codes=16, min_usage=0)

    def __init__(self, grid: int, device: str = "cpu") -> None:
        self.grid, self.device = grid, torch.device(device)

    @classmethod
    def from_pretrained(cls, uri: str) -> Self:
        """Read the grid."""
        return cls(int(storage.read_json(storage.join(uri, "config.json"))["grid"]))

    def save_pretrained(self, uri: str) -> None:
        """Write the grid, and the name by which this class is found."""
        storage.write_json(storage.join(uri, "config.json"), {"model_type": "brightness", "grid": self.grid})

    def to(self, device: Any) -> Self:
        """A copy elsewhere."""
        return type(self)(self.grid, str(device))

    def encode(self, frames: Tensor) -> Tensor:
        """Codes of regions."""
        images = frames.flatten(0, 1).float().mean(-1)[:, None]
        levels = nn.functional.adaptive_avg_pool2d(images, self.grid) / 16
        return levels.long().clamp(0, 15).view(len(frames), -1)

    def word_logits(self, code_ids: Tensor) -> Tensor:
        """Never called, as `has_words` is False."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A digest of its rules."""
        return hashlib.sha256(json.dumps({"brightness": self.grid}).encode()).hexdigest()[:16]


@dataclass
class BrightnessBatch(Batch):
    """Brightness of each frame of clips."""

    brightness: Tensor
    clip_ids: list[str]


class BrightnessScores:
    """The mean error of a split."""

    def __init__(self, objective: "BrightnessObjective") -> None:
        self._objective, self._total, self._count = objective, 0.0, 0

    def add(self, batch: BrightnessBatch, device: torch.device) -> None:
        """Add one batch."""
        loss = self._objective(batch.to(device))["brightness"]
        self._total, self._count = self._total + float(loss.total), self._count + loss.num_items

    def state(self) -> dict[str, Any]:
        """Sum and count of this worker."""
        return {"total": self._total, "count": self._count}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """The metrics."""
        error = sum(state["total"] for state in states) / max(1, sum(state["count"] for state in states))
        return {"loss": error, "brightness_error": error}


class BrightnessObjective(Objective):
    """Predict the brightness of a clip from its first frame."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"brightness": 1.0}
        self.line = nn.Linear(1, 1)

    def forward(self, batch: BrightnessBatch) -> dict[str, LossSum]:
        """Squared error, summed."""
        first, whole = batch.brightness[:, :1], batch.brightness.mean(1, keepdim=True)
        error = (self.line(first) - whole).square().sum()
        no_accuracy = error.new_full((), -1)
        return {"brightness": LossSum(error, len(first), no_accuracy)}

    def counts(self, batch: BrightnessBatch) -> dict[str, int]:
        """Clips."""
        return {"brightness": len(batch.clip_ids)}

    def scores(self) -> BrightnessScores:
        """Error on a split."""
        return BrightnessScores(self)


def collate(rows: Rows) -> BrightnessBatch:
    """Mean of the pixels of each frame, 0 to 1."""
    brightness = rows.frames.mean((2, 3, 4), dtype=np.float32) / 255
    return BrightnessBatch(torch.from_numpy(brightness), rows.clip_ids[rows.mine])


class BrightnessTask:
    """A task on the frames of a data set; its settings are those of the tokenizer's training."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = TrainTokenizer.model_validate(settings)
        self._frames = FrameManifest.load(self.settings.frames)
        self._augmentation = ClipAugmentation(self.settings.schedule.seed, self.settings.arch.num_frames)

    def objective(self) -> BrightnessObjective:
        """The module that is trained."""
        return BrightnessObjective()

    def train_loader(self, rank: int, world: int) -> DataLoader:
        """Batches of the train split."""
        side = open_side(self._frames, "train")
        schedule, pairs = self.settings.schedule, self._pairs("train")
        return training_loader(pairs, schedule, collate, rank, world, self._augmentation, 1, side)

    def eval_loader(self, rank: int, world: int) -> DataLoader | None:
        """Batches of the val split."""
        side, schedule = open_side(self._frames, "val"), self.settings.schedule
        return evaluation_loader(self._pairs("val"), schedule, collate, rank, world, 8, self._augmentation, 1, side)

    def panels(self, tracked: Any) -> None:
        """There are none."""

    def forward_macs(self, objective: Any) -> float:
        """One."""
        return 1.0

    def describe(self, folder: str, objective: Any) -> None:
        """Write the settings of the model."""
        storage.write_json(storage.join(folder, "config.json"), {"model_type": "brightness_line"})

    def export(self, objective: Any) -> None:
        """Write the model."""
        self.describe(self.settings.out, objective)
        line = {name: float(value) for name, value in objective.line.state_dict().items()}
        storage.write_json(storage.join(self.settings.out, "line.json"), line)

    def _pairs(self, split: str) -> list[ShardPair]:
        folder, shards = self._frames.uri, self._frames.of_split(split)
        return [ShardPair(storage.join(folder, s.file), "", s.num_clips, s.row_groups) for s in shards]


def write_entry_points(folder: Path) -> None:
    """Write what an installed package has beside it: the names of its parts. `folder` belongs on the path."""
    about = folder / "toy_plugins-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugins\nVersion: 1.0\n")
    lines = ["[evilm.video_tokenizers]", "brightness = helpers.toy_plugins:BrightnessTokenizer"]
    lines += ["[evilm.video_encoders]", "mean_colour = helpers.toy_plugins:MeanColourEncoder"]
    lines += ["[evilm.table_layouts]", "films = helpers.toy_plugins:FILMS"]
    lines += ["[evilm.tasks]", "brightness = helpers.toy_plugins:BrightnessTask"]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
