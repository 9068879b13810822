"""Settings of fine-tuning on a downstream task."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from evilm.config.base import Common, Config, Incidental
from evilm.config.items import BuiltTask
from evilm.config.stage_settings import StageConfig
from evilm.config.training import OptimConfig, ScheduleConfig, TrainConfig

Part = Literal["video_encoder", "text_encoder", "decoder"]


class HeadConfig(Config):
    """The head of a downstream task, and how its training differs from that of the model below it."""

    type: Common[Literal["mlp", "mlm", "match"]] = "mlp"
    """mlp: a new classifier on the pooled [CLS]; mlm: for questions, the model's own MLM head at a [MASK] after the
    question; match: for choices, the model's own matching head."""
    hidden: int = Field(default=0, ge=0)
    """Hidden width of the mlp; 0: half of the decoder's width for answers and classes, 256 for choices."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout probability in front of the mlp."""
    embed_dim: int = Field(default=512, ge=1)
    """Width of the common space of videos and captions in retrieval."""
    temperature: float = Field(default=0.05, gt=0)
    """Temperature of the contrastive loss."""
    match_weight: float = Field(default=1.0, ge=0)
    """Weight of the matching loss in retrieval, which the re-ranking and multiple choice need; 0 leaves it out."""
    num_negatives: int = Field(default=4, ge=1)
    """Negatives of each caption in the matching loss: captions of other videos."""
    lr_scale: float = Field(default=10.0, gt=0)
    """Learning rate of the head, as a multiple of optim.lr."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each block of the decoder to the one below it; encoders are below the first."""
    freeze: tuple[Part, ...] = ()
    """Parts of the model that are not trained: video_encoder, text_encoder, decoder."""


class FinetuneOptim(OptimConfig):
    """AdamW as in pre-training, with a learning rate that falls to 0."""

    final_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Final learning rate as a share of lr."""


class FinetuneSchedule(ScheduleConfig):
    """Length of a fine-tuning; clips per step are items, and an epoch of retrieval shows each clip once."""

    keep_best: Incidental[str] = "score"
    """Val metric whose best checkpoint is also kept: score is the accuracy, or the mean recall of retrieval."""


class Finetune(BuiltTask, TrainConfig, StageConfig):
    """Fine-tune a pre-trained model on the items of a downstream task; inputs that are not named are under --root.

    MSRVTT-MC has no training split: score a model of msrvtt-retrieval with --items.protocol 7k on it.
    """

    example: ClassVar[str] = "--preset tiny --task msvd-qa --root runs/demo"
    uncommon: ClassVar[tuple[str, ...]] = ("init", "num_frames")
    root: Common[Incidental[str]] = "runs/demo"
    """Folder of the inputs that are not named; items are built there from the annotations of the embedded corpus."""
    model: Common[Incidental[str]] = ""
    """Pre-trained model."""
    from_scratch: Common[bool] = False
    """Start from random weights, with the settings and the vocabulary of --model: what pre-training is compared to."""
    frames: Common[Incidental[str]] = ""
    """Frame shards of the task's videos."""
    max_text_len: Common[int] = Field(default=0, ge=0)
    """Longest text in word pieces; 0: as the model. Paragraphs of DiDeMo need 80."""
    num_frames: Common[int] = Field(default=0, ge=0, le=64)
    """Frames per clip; 0: as the model. Temporal positions are interpolated."""
    head: HeadConfig = HeadConfig()
    export: Incidental[Literal["last", "best"]] = "best"
    """Step to publish: the last, or the one with the best score on val."""
    optim: FinetuneOptim = FinetuneOptim()  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen
    schedule: FinetuneSchedule = FinetuneSchedule()  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.init:
            raise ValueError(f"init = {self.init!r}: fine-tuning starts from --model")
        if self.schedule.audit:
            raise ValueError("schedule.audit checks clips of pre-training; a fine-tuning shows items")
        return self
