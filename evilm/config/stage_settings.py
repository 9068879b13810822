"""Settings of the stages that other commands build from, apart from a command's own: inputs, output, tracking.

A stage's command adds these (`evilm.config.stages`); `pretrain`, `all` and sweeps fill them in themselves.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from evilm.config.base import Common, Config, Incidental, Stage
from evilm.config.data import ColumnsConfig, CorpusConfig, FetchConfig, FramesConfig, VocabConfig
from evilm.config.models import VideoTokenizerConfig
from evilm.config.resources import ActorPoolConfig, PoolConfig, TaskConfig
from evilm.config.training import CropConfig, TrainConfig


class TrackingConfig(Config):
    """MLflow tracking."""

    uri: str = ""
    """Tracking server or store; '' uses MLFLOW_TRACKING_URI, else a sqlite file beside the output."""
    run_name: str = ""
    """Name of the run; '' derives it from the command, the output and the settings."""
    experiment: str = ""
    """Experiment of the project; '' uses MLFLOW_EXPERIMENT_NAME, else `evilm`."""
    parent: str = ""
    """Id of the run below which this one is shown."""
    enabled: bool = True
    """Track the run; false keeps only the metrics file in the output."""
    log_model: bool = True
    """Log the finished model to the run, and register it as `evilm` if the server has a registry."""


class StageConfig(Config):
    """Settings that every command takes."""

    folder: ClassVar[str] = "pipelines"
    """Folder of the command's script."""
    example: ClassVar[str] = ""
    """Arguments of the example that `--help` shows."""
    bare_values: ClassVar[dict[str, str]] = {}
    """Values of settings whose flags are given without one; switches have theirs anyway."""
    short_flags: ClassVar[dict[str, str]] = {}
    """Short names of much used flags of nested settings."""
    uncommon: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of settings that this command's `--help` leaves out, although others show them."""

    preset: Common[Incidental[str]] = ""
    """Settings to start from: tiny, gpu, paper, tasks/TASK for a downstream task, or the path of a YAML file; flags
    override them."""
    out: Common[Incidental[str]] = ""
    """Output folder, a local path or s3://bucket/key."""
    dry_run: Common[Incidental[bool]] = False
    """Print the resolved settings and exit."""
    overwrite: Common[Incidental[bool]] = False
    """Delete what an earlier run with other settings left in --out."""
    take_over: Incidental[bool] = False
    """If another run is writing to --out, wait until it has been silent for a minute, then continue its work."""
    tracking: Incidental[TrackingConfig] = TrackingConfig()


class RenderSettings(Config):
    """Settings of rendering the embedded corpus."""

    corpus: CorpusConfig = CorpusConfig()
    cluster: TaskConfig = TaskConfig()


class VocabSettings(Config):
    """Settings of the vocabulary."""

    base_vocab: Common[str] = ""
    """A BERT vocab.txt whose frequent entries are kept; '' trains a vocabulary instead."""
    split: Common[str] = "train"
    """Split whose captions are counted, if the manifest has splits."""
    columns: ColumnsConfig = ColumnsConfig()
    words: VocabConfig = VocabConfig()


class ShardSettings(Config):
    """Settings of the frame shards."""

    split: Common[str] = "train"
    """Split of clips whose row names none."""
    val_share: Common[float] = Field(default=0.0, ge=0, lt=1)
    """Share of the source videos, 0 to 1, whose clips go to the split val, among rows that name no split; drawn by a
    hash of the video's path, so all clips of a video are in one split."""
    test_share: Common[float] = Field(default=0.0, ge=0, lt=1)
    """The same for the split test."""
    limit: Common[Incidental[int]] = Field(default=0, ge=0)
    """Use only the first N rows of the manifest; 0 uses all."""
    max_failed_share: Common[Incidental[float]] = Field(default=0.5, ge=0, le=1)
    """Fail with exit code 1 if more than this share of the rows, 0 to 1, is quarantined; stops as soon as that is
    certain."""
    retry: Common[Incidental[str]] = ""
    """Retry clips quarantined for these reasons, separated by commas, such as fetch_error; or for `all`."""
    repair: Incidental[bool] = False
    """Read all shards, and write damaged ones again, with the same bytes."""
    publish_every: Incidental[str] = "30m"
    """Publish finished shards during the run: after this many shards (`200`), minutes (`30m`) or hours (`2h`); `0`:
    only at the end."""
    columns: ColumnsConfig = ColumnsConfig()
    fetch: Incidental[FetchConfig] = FetchConfig()
    sampling: FramesConfig = FramesConfig()
    cluster: PoolConfig = PoolConfig()

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.val_share + self.test_share >= 1:
            raise ValueError(
                f"val_share = {self.val_share:g} and test_share = {self.test_share:g} leave nothing for --split "
                f"{self.split}; their sum must be below 1"
            )
        return self


class TokenizerSettings(TrainConfig):
    """Settings of the training of the video tokenizer."""

    arch: VideoTokenizerConfig = VideoTokenizerConfig()


class CodesSettings(Config):
    """Settings of the codes."""

    views: Common[int] = Field(default=1, ge=1, le=64)
    """Views coded per clip: the whole frame, then random crops and flips, for exact codes under augmentation."""
    augment: CropConfig = CropConfig()
    batch_clips: Common[Incidental[int]] = Field(default=64, ge=1)
    """Clips decoded and coded at a time; the codes do not depend on it."""
    audit: Common[Incidental[int]] = Field(default=0, ge=0)
    """Code this many random clips again at the end, and report the share of equal codes."""
    repair: Common[Incidental[bool]] = False
    """Read all code shards, and recompute damaged ones, with the same bytes."""
    cluster: ActorPoolConfig = ActorPoolConfig(memory_gb=2.0)

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the codes are; crops only if there are views with crops."""
        data = super().identity
        return {name: value for name, value in data.items() if name != "augment" or self.views > 1}


class Upstream(Config):
    """Settings of the stages that `pretrain` runs if their output is missing."""

    render_corpus: Stage[RenderSettings] = RenderSettings()
    shard_videos: Stage[ShardSettings] = ShardSettings()
    build_vocab: Stage[VocabSettings] = VocabSettings()
    train_tokenizer: Stage[TokenizerSettings] = TokenizerSettings()
    precompute_codes: Stage[CodesSettings] = CodesSettings()


def recorded_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names in recorded digests, where those of other stages begin with `build.`"""
    stages = Upstream.model_fields.keys()
    return {f"build.{name}" if name.partition(".")[0] in stages else name: value for name, value in values.items()}
