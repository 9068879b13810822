"""One class per command: its inputs, output and settings. A preset holds a section per command, under its name."""

from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from evilm.config.base import Common, Config, Incidental, Stage
from evilm.config.finetune_command import Finetune
from evilm.config.items import BuiltTask, TaskSettings
from evilm.config.pretrain_command import Pretrain
from evilm.config.resources import ScorerConfig, TaskConfig
from evilm.config.stage_settings import (
    CodesSettings,
    RenderSettings,
    ShardSettings,
    StageConfig,
    TokenizerSettings,
    VocabSettings,
)
from evilm.config.sweep_command import CodebookSize, FocalLoss, LrBatch, MaskingRatio, Sweep


class RenderCorpus(RenderSettings, StageConfig):
    """Render the embedded corpus: captioned H.264 clips and their manifest."""

    example: ClassVar[str] = "--preset tiny --out runs/demo/corpus"


class ShardVideos(ShardSettings, StageConfig):
    """Cut a manifest and a folder of videos into Parquet frame shards."""

    example: ClassVar[str] = "--manifest clips.csv --videos clips/ --out runs/my/frames"
    short_flags: ClassVar[dict[str, str]] = {
        "frames": "sampling.num_frames",
        "frames_stored": "sampling.frames_stored",
        "follow_links": "fetch.follow_links",
    }
    manifest: Common[Incidental[str]] = ""
    """CSV, TSV, JSON lines or Parquet with one clip per row, or tars of clips: files, globs or folders, separated by
    commas."""
    videos: Common[Incidental[str]] = ""
    """Root folder of the videos; not needed for tars, or if all clips are downloaded."""


class BuildVocab(VocabSettings, StageConfig):
    """Keep the frequent words of a vocabulary, or train one, on the captions of a manifest."""

    example: ClassVar[str] = "--manifest clips.csv --base-vocab vocab.txt --out runs/my/vocab"
    manifest: Common[Incidental[str]] = ""
    """Captions: tables or tars as for shard_videos, COCO captions JSON, or .txt."""


class BuildItems(TaskSettings, StageConfig):
    """Build the items of a downstream task from its official annotations."""

    example: ClassVar[str] = "--task msvd-qa --annotations MSVD-QA --frames runs/msvd/frames --out runs/msvd/qa"
    frames: Common[Incidental[str]] = ""
    """Frame shards of the videos; '' keeps all items, whose coverage is then unknown."""


class TrainTokenizer(TokenizerSettings, StageConfig):
    """Train the semantic video tokenizer (Sec. 3.3) on frame shards."""

    example: ClassVar[str] = "--preset tiny --frames runs/demo/frames --vocab runs/demo/vocab --out runs/demo/tokenizer"
    frames: Common[Incidental[str]] = ""
    """Frame shards."""
    vocab: Common[Incidental[str]] = ""
    """Vocabulary of the caption words."""


class PrecomputeCodes(CodesSettings, StageConfig):
    """Write the tokenizer's codes of every clip, row-aligned with the frame shards."""

    example: ClassVar[str] = "--frames runs/demo/frames --tokenizer runs/demo/tokenizer --out runs/demo/codes --views 4"
    frames: Common[Incidental[str]] = ""
    """Frame shards."""
    tokenizer: Common[Incidental[str]] = ""
    """Video tokenizer."""


_PromoteBy = Literal["", "t2v_r1", "t2v_r5", "t2v_r10", "t2v_median_rank", "choice_accuracy", "mvm_accuracy"]
PROMOTE_BY = tuple(filter(None, get_args(_PromoteBy)))
"""Figures that may decide which registered model is champion."""


class BenchmarkSettings(Config):
    """Settings of the zero-shot scores."""

    frames: Common[Incidental[str]] = ""
    """Frame shards."""
    codes: Common[Incidental[str]] = ""
    """Code shards of the same frames, for masked-code accuracy; '' looks under --root, 'none' skips it."""
    split: Common[str] = "test"
    """Split to score."""
    max_clips: Common[int] = Field(default=1000, ge=2)
    """Largest number of clips to score; all pairs are scored, so the cost grows with its square."""
    num_choices: Common[int] = Field(default=5, ge=2)
    """Captions to choose from in multiple choice."""
    seed: Common[int] = 0
    """Seed of the wrong captions and of the masks."""
    promote_by: Common[Incidental[_PromoteBy]] = "t2v_r10"
    """Score by which the registered model becomes `champion` in MLflow (docs/tracking.md); '' leaves aliases alone."""
    cluster: ScorerConfig = ScorerConfig()


class Benchmark(BenchmarkSettings, BuiltTask, StageConfig):
    """Score a pre-trained model zero-shot, or with --task on a downstream task.

    Without --task: retrieval, multiple choice and masked-code accuracy on the captions of the frame shards.
    """

    example: ClassVar[str] = "--preset tiny --root runs/demo --task msvd-qa"
    uncommon: ClassVar[tuple[str, ...]] = ("items.",)
    root: Common[Incidental[str]] = "runs/demo"
    """Folder of the inputs that are not named."""
    model: Common[Incidental[str]] = ""
    """Pre-trained or fine-tuned model; '' takes the one under --root that was fine-tuned on the task, if there is
    one."""
    allow_leak: bool = False
    """Score a model although it was trained on some of the scored videos; the result is marked."""
    rerank_top: int = Field(default=0, ge=0)
    """Retrieval: rank this many of the best videos of each caption again by the matching head; 0: none."""
    pairwise: bool = False
    """Retrieval: also score every pair by the matching head, and compare time and recall."""
    views: int = Field(default=1, ge=1, le=64)
    """With --task: choices of frames per video over which scores are averaged, if shards store more frames than the
    model takes; 1 takes the middle ones."""
    max_text_len: int = Field(default=0, ge=0)
    """With --task: longest text in word pieces; 0: as the model. Positions that it was not trained with are random."""
    num_frames: int = Field(default=0, ge=0, le=64)
    """With --task: frames per clip; 0: as the model. Temporal positions are interpolated."""
    batch_items: Incidental[int] = Field(default=64, ge=1)
    """Items that are scored at a time."""

    @model_validator(mode="after")
    def _fits_task(self) -> Self:
        settings = BenchmarkSettings()
        unused = [n for n in ("codes", "max_clips", "num_choices", "seed") if getattr(self, n) != getattr(settings, n)]
        if self.task and unused:
            raise ValueError(f"{unused[0]} = {getattr(self, unused[0])!r} has no effect with --task; leave it out")
        of_tasks = {"views": 1, "max_text_len": 0, "num_frames": 0}
        unused = [name for name, default in of_tasks.items() if getattr(self, name) != default]
        if unused and not self.task:
            raise ValueError(f"{unused[0]} = {getattr(self, unused[0])} has no effect without --task; leave it out")
        return self


class RunAll(Pretrain):
    """Run the whole workflow as one job: flags are those of pretrain; --set changes the other stages."""

    example: ClassVar[str] = "--preset tiny --manifest clips.csv --videos clips/ --set benchmark.split=train"
    benchmark: Stage[BenchmarkSettings] = BenchmarkSettings()


class InspectShards(StageConfig):
    """Describe the contents of frame shards and codes, verify them, and draw contact sheets."""

    example: ClassVar[str] = "--frames runs/demo/frames --verify --sheets 4 --out runs/demo/inspection"
    bare_values: ClassVar[dict[str, str]] = {"verify": "full"}
    frames: Common[Incidental[str]] = ""
    """Frame shards."""
    codes: Common[Incidental[str]] = ""
    """Codes of these frames: the folder of one tokenizer's, or the one above it."""
    verify: Common[Literal["no", "quick", "full"]] = "no"
    """quick: sizes and footers; full (also without a value): every byte, row and JPEG. Faults end in exit code 1."""
    sheets: Common[int] = Field(default=0, ge=0)
    """Random clips of each split to draw as contact sheets."""
    sheet_clips: Common[str] = ""
    """Ids of clips to draw as contact sheets, separated by commas."""
    seed: Common[int] = 0
    """Seed of the random clips."""
    cluster: TaskConfig = TaskConfig()


class Report(StageConfig):
    """Print the outputs of all stages under a root as one table."""

    example: ClassVar[str] = "--root runs/demo"
    root: Common[Incidental[str]] = "runs/demo"
    """Root folder of a workflow."""
    tables: Common[bool] = False
    """Print Tables 1-4 of the paper with the scores under --root beside the published ones, and write them as Markdown
    and as a figure to --out, by default ROOT/tables. With --tracking.uri the scores are those of that MLflow store."""


STAGES: dict[str, type[StageConfig]] = {
    "render_corpus": RenderCorpus,
    "shard_videos": ShardVideos,
    "build_vocab": BuildVocab,
    "build_items": BuildItems,
    "train_tokenizer": TrainTokenizer,
    "precompute_codes": PrecomputeCodes,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "benchmark": Benchmark,
    "all": RunAll,
    "inspect_shards": InspectShards,
    "report": Report,
    "sweep": Sweep,
    "masking_ratio": MaskingRatio,
    "codebook_size": CodebookSize,
    "focal_loss": FocalLoss,
    "lr_batch": LrBatch,
}
"""Every command by its file's name, which is also its section in a preset."""
