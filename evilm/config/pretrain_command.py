"""Settings of `pretrain`: the model, its objectives, and the stages that it builds from."""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from evilm.config.base import Common, Incidental
from evilm.config.data import ColumnsConfig
from evilm.config.models import EViLMConfig
from evilm.config.stage_settings import StageConfig, Upstream
from evilm.config.training import AugmentConfig, ObjectivesConfig, TrainConfig


class Pretrain(Upstream, TrainConfig, StageConfig):
    """Pre-train E-ViLM (Eq. 8) on cached codes; inputs that are not named are built under --root."""

    example: ClassVar[str] = "--preset tiny --manifest clips.csv --videos clips/ --root runs/my --optim.lr 3e-4"
    root: Common[Incidental[str]] = "runs/demo"
    """Folder of the inputs that are not named; what is missing there is built."""
    manifest: Common[Incidental[str]] = ""
    """Manifest of your own clips, as in shard_videos; '' builds frames from the embedded corpus."""
    videos: Common[Incidental[str]] = ""
    """Root folder of your own videos; not needed if the manifest is tars, or with shard_videos.fetch.urls."""
    frames: Common[Incidental[str]] = ""
    """Frame shards."""
    codes: Common[Incidental[str]] = ""
    """Code shards: the folder that holds one folder per tokenizer."""
    vocab: Common[Incidental[str]] = ""
    """Vocabulary."""
    tokenizer: Common[Incidental[str]] = ""
    """Video tokenizer whose codes are the targets."""
    views: Incidental[int] = Field(default=0, ge=0, le=64)
    """Views per clip (crops and flips) to train on, one in each epoch: of the codes in --codes, or to be coded. 0 uses
    all views of --codes; without --codes, precompute_codes.views."""
    arch: EViLMConfig = EViLMConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    augment: AugmentConfig = AugmentConfig()
    audit_clips: Incidental[int] = Field(default=4, ge=0)
    """Clips to code again before training, to verify the codes; 0 skips it."""
    audit_agreement: Incidental[float] = Field(default=0.99, ge=0, le=1)
    """Smallest accepted share of equal codes in that check, 0 to 1; codes from other hardware may differ in near
    ties."""
    columns: Incidental[ColumnsConfig] = ColumnsConfig()

    def _resolved_values(self) -> dict[str, Any]:
        """Return the settings that `resolved` changes, also those of the tokenizer's training."""
        tokenizer = self.train_tokenizer._resolved_values()
        return super()._resolved_values() | {f"train_tokenizer.{name}": value for name, value in tokenizer.items()}

    @model_validator(mode="after")
    def _same_grid(self) -> Self:
        tokenizer = self.train_tokenizer.arch
        if not self.tokenizer and tokenizer.grid != self.arch.grid:
            raise ValueError(
                f"the tokenizer gives {tokenizer.grid} x {tokenizer.grid} codes per frame, the model has "
                f"{self.arch.grid} x {self.arch.grid} regions; set arch.input_px / 32 equal to "
                "train_tokenizer.arch.input_px / patch_px"
            )
        stored = self.shard_videos.sampling.stored
        for name, count in (("arch", self.arch.num_frames), ("train_tokenizer.arch", tokenizer.num_frames)):
            if not self.frames and stored % count:
                raise ValueError(
                    f"{name}.num_frames = {count} does not divide the {stored} frames stored per clip; set it to a "
                    "divisor, or shard_videos.sampling.frames_stored to a multiple of it"
                )
        return self
