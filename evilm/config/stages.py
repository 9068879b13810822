"""One class per command: its places, its settings. A preset holds one section per command, under the command's name."""

from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from evilm.config.base import Config
from evilm.config.data import ColumnsConfig, CorpusConfig, FetchConfig, FramesConfig, VocabConfig
from evilm.config.items import ItemsConfig
from evilm.config.models import EViLMConfig, VideoTokenizerConfig
from evilm.config.sweep_space import Range, check_score, check_space, read_space
from evilm.config.training import (
    AugmentConfig,
    ClusterConfig,
    CropConfig,
    ObjectivesConfig,
    PoolConfig,
    TrackingConfig,
    TrainConfig,
)


class StageConfig(Config):
    """Settings that every command takes."""

    folder: ClassVar[str] = "pipelines"
    """Where the command's script lies."""
    bare_values: ClassVar[dict[str, str]] = {}
    """What flags mean that stand without a value."""
    short_flags: ClassVar[dict[str, str]] = {}
    """Short names of nested flags that are much used."""

    preset: str = ""
    """tiny, gpu, paper, or the path of a YAML file; flags go over it."""
    dry_run: bool = False
    """Print the resolved settings and end."""
    overwrite: bool = False
    """Delete what an earlier run with other settings left at --out."""
    take_over: bool = False
    """If another run is writing --out, wait until it is silent for a minute, and go on from what it left."""
    out: str = ""
    """Where the result goes, a local path or s3://bucket/key."""
    tracking: TrackingConfig = TrackingConfig()

    @property
    def identity(self) -> dict[str, object]:
        """The settings that decide what the result is: places and machinery left out."""
        config = self.resolved().with_precision() if isinstance(self, TrainConfig) else self
        data = config.model_dump(mode="json")
        precision = data.get("cluster", {}).get("precision")  # alone of the machinery, it changes the numbers
        for name in (
            "preset",
            "dry_run",
            "overwrite",
            "take_over",
            "export",
            "profile_steps",
            *_PLACES,
            "cluster",
            "tracking",
        ):
            data.pop(name, None)
        if precision is not None:
            data["precision"] = precision
        for name in _CADENCE:
            data.get("schedule", {}).pop(name, None)
        data.get("optim", {}).pop("lr_batch_clips", None)  # as worker_clips, resolved above
        return data


_LENGTH = ("max_steps", "eval_clips", "eval_every_epochs")
"""How far a training goes and what it is evaluated on: no step depends on them, so they may change between runs."""
_CADENCE = (
    *("worker_clips", "max_steps", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints", "keep_best"),
    *("gradient_accumulation_steps", "nonfinite", "audit", "panel_every_steps", "eval_pool_clips", "eval_at_steps"),
    *_LENGTH,
)
_PLACES = ("out", "root", "manifest", "videos", "frames", "codes", "vocab", "tokenizer", "model", "corpus_root", "init")


class RenderCorpus(StageConfig):
    """Render the embedded corpus: captioned H.264 clips and their manifest."""

    corpus: CorpusConfig = CorpusConfig()
    cluster: ClusterConfig = ClusterConfig()


class BuildVocab(StageConfig):
    """Keep the frequent words of a vocabulary, or train one, on the captions of a manifest."""

    manifest: str = ""
    """Captions: tables or tars as shard_videos takes, COCO captions JSON, or .txt."""
    base_vocab: str = ""
    """A BERT vocab.txt to keep the frequent part of; '' trains a vocabulary."""
    split: str = "train"
    """Count captions of this split only, where the manifest has splits."""
    columns: ColumnsConfig = ColumnsConfig()
    words: VocabConfig = VocabConfig()


class BuildItems(StageConfig):
    """Build the items of a downstream task from its official annotations."""

    task: str = ""
    """msrvtt-retrieval, msrvtt-qa, msrvtt-mc, msvd-qa, tgif-action, tgif-transition, tgif-frame, didemo-retrieval,
    hmdb51 or kinetics-400."""
    annotations: str = ""
    """Folder of the official annotation files."""
    frames: str = ""
    """Frame shards of the videos; without, all items are kept and their coverage is unknown."""
    items: ItemsConfig = ItemsConfig()


class ShardVideos(StageConfig):
    """Cut a manifest and a folder of videos into Parquet frame shards."""

    short_flags: ClassVar[dict[str, str]] = {
        "frames": "sampling.num_frames",
        "frames_stored": "sampling.frames_stored",
        "follow_links": "fetch.follow_links",
    }
    manifest: str = ""
    """CSV, TSV, JSON lines or Parquet with one clip per row, or tars of clips: files, globs or folders, by commas."""
    videos: str = ""
    """Root folder of the videos; not needed for tars, and where all clips are downloaded."""
    split: str = "train"
    """Split of clips whose row names none."""
    val_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the source videos, of rows that name no split, whose clips go to the split val; drawn by a hash of the
    video's place, so that the clips of a video are on one side."""
    test_share: float = Field(default=0.0, ge=0, lt=1)
    """The same for the split test."""
    limit: int = Field(default=0, ge=0)
    """Use only the first N rows; 0 uses all."""
    max_failed_share: float = Field(default=0.5, ge=0, le=1)
    """Fail (exit 1) when more than this share of the rows is quarantined; in the middle as soon as that is certain."""
    retry: str = ""
    """Try quarantined clips once more that have one of these reasons (by commas), or `all`, e.g. fetch_error."""
    repair: bool = False
    """Read all shards, and make damaged ones again, with the same bytes."""
    publish_every: str = "30m"
    """Publish finished shards while others are being made: every so many shards (`200`), minutes (`30m`), hours (`2h`);
    `0`: only at the end."""
    columns: ColumnsConfig = ColumnsConfig()
    fetch: FetchConfig = FetchConfig()
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

    @property
    def identity(self) -> dict[str, object]:
        data = super().identity
        for name in (
            "max_failed_share",
            "retry",
            "repair",
            "publish_every",
        ):  # decide whether the result is good enough, not what it is
            data.pop(name, None)
        data.pop("fetch", None)  # decides how a video is fetched, not what it is
        data.pop("limit", None)  # of the manifest's rows, of which there may be more next time
        return data


class TrainTokenizer(StageConfig, TrainConfig):
    """Train the semantic video tokenizer (Sec. 3.3) on frame shards."""

    frames: str = ""
    """Frame shards."""
    vocab: str = ""
    """Vocabulary of the caption words."""
    arch: VideoTokenizerConfig = VideoTokenizerConfig()

    @property
    def identity(self) -> dict[str, object]:
        data: dict[str, Any] = super().identity
        data["arch"]["codebook"].pop("min_usage")  # decides whether the result is accepted, not what it is
        return data


class PrecomputeCodes(StageConfig):
    """Write the tokenizer's codes of every clip, row-aligned with the frame shards."""

    frames: str = ""
    """Frame shards."""
    tokenizer: str = ""
    """Video tokenizer."""
    views: int = Field(default=1, ge=1, le=64)
    """Views coded per clip: the whole frame first, then random crops and flips, for exact codes under augmentation."""
    augment: CropConfig = CropConfig()
    """How the views after the first are drawn."""
    batch_clips: int = Field(default=64, ge=1)
    """Clips decoded and coded at a time; the codes do not depend on it."""
    audit: int = Field(default=0, ge=0)
    """Code this many random clips again when all are coded, and report how many codes agree."""
    repair: bool = False
    """Read all code shards, and make damaged ones again, with the same bytes."""
    cluster: PoolConfig = PoolConfig(memory_gb=2.0)

    @property
    def identity(self) -> dict[str, object]:
        data = super().identity
        for name in ("batch_clips", "audit", "repair", "precision", *(["augment"] if self.views == 1 else [])):
            data.pop(name, None)
        return data


class Upstream(Config):
    """Settings of the stages that `pretrain` runs where their output is missing: the sections of the other commands."""

    render_corpus: RenderCorpus = RenderCorpus()
    shard_videos: ShardVideos = ShardVideos()
    build_vocab: BuildVocab = BuildVocab()
    train_tokenizer: TrainTokenizer = TrainTokenizer()
    precompute_codes: PrecomputeCodes = PrecomputeCodes()


class Pretrain(StageConfig, TrainConfig):
    """Pre-train E-ViLM (Eq. 8) against cached codes; builds what is not named under --root."""

    root: str = "runs/demo"
    """Where inputs that are not named are looked for, and built when missing."""
    manifest: str = ""
    """Manifest of your own clips, as in shard_videos; '' uses the embedded corpus when frames must be built."""
    videos: str = ""
    """Root folder of your own clips; not needed for tars."""
    frames: str = ""
    """Frame shards."""
    codes: str = ""
    """Code shards; the folder that holds one folder per tokenizer."""
    vocab: str = ""
    """Vocabulary."""
    tokenizer: str = ""
    """Video tokenizer whose codes are the targets."""
    views: int = Field(default=0, ge=0, le=64)
    """Views per clip (crops and flips) to train on, one in each epoch: of the codes in --codes, or to be coded.
    0 takes the most that --codes has; where it is not named, what build.precompute_codes says."""
    arch: EViLMConfig = EViLMConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    augment: AugmentConfig = AugmentConfig()
    audit_clips: int = Field(default=4, ge=0)
    """Before training, code this many clips again to see that the codes are right; 0 leaves it out."""
    audit_agreement: float = Field(default=0.99, ge=0, le=1)
    """Share of codes that must agree in that test; codes made on other hardware may differ in near ties."""
    columns: ColumnsConfig = ColumnsConfig()
    build: Upstream = Upstream()

    def resolved(self) -> Self:
        config = super().resolved()
        tokenizer = config.build.train_tokenizer.resolved()
        return config.model_copy(update={"build": config.build.model_copy(update={"train_tokenizer": tokenizer})})

    @property
    def identity(self) -> dict[str, object]:
        data = super().identity
        for name in ("columns", "audit_clips", "audit_agreement"):
            data.pop(name, None)
        for name in ("build", "views"):  # what they choose is covered by the inputs' fingerprints
            data.pop(name, None)
        return data

    @model_validator(mode="after")
    def _same_grid(self) -> "Pretrain":
        tokenizer = self.build.train_tokenizer.arch
        if not self.tokenizer and tokenizer.grid != self.arch.grid:
            raise ValueError(
                f"the tokenizer gives {tokenizer.grid} x {tokenizer.grid} codes per frame, the model has "
                f"{self.arch.grid} x {self.arch.grid} regions; set arch.input_px / 32 equal to "
                "build.train_tokenizer.arch.input_px / patch_px"
            )
        stored = self.build.shard_videos.sampling.stored
        for name, count in (("arch", self.arch.num_frames), ("build.train_tokenizer.arch", tokenizer.num_frames)):
            if not self.frames and stored % count:
                raise ValueError(
                    f"{name}.num_frames = {count} does not divide the {stored} frames stored per clip; set it to a "
                    "divisor, or build.shard_videos.sampling.frames_stored to a multiple of it"
                )
        return self


_PromoteBy = Literal["", "t2v_r1", "t2v_r5", "t2v_r10", "t2v_median_rank", "choice_accuracy", "mvm_accuracy"]
PROMOTE_BY = tuple(filter(None, get_args(_PromoteBy)))
"""Figures that may decide which registered model is champion."""


class Benchmark(StageConfig):
    """Score a pre-trained model: zero-shot retrieval, multiple choice, masked-code accuracy."""

    root: str = "runs/demo"
    """Where inputs that are not named are looked for."""
    model: str = ""
    """Pre-trained model."""
    frames: str = ""
    """Frame shards."""
    codes: str = ""
    """Code shards of the same frames, for masked-code accuracy; '' looks under --root, 'none' leaves it out."""
    split: str = "test"
    """Split that is scored."""
    max_clips: int = Field(default=1000, ge=2)
    """Score at most this many clips; all pairs are scored, so cost grows with the square."""
    num_choices: int = Field(default=5, ge=2)
    """Captions to choose from in multiple choice."""
    seed: int = 0
    """Seed of the wrong captions and of the masks."""
    promote_by: _PromoteBy = "t2v_r10"
    """Figure by which the registered model becomes `champion` in MLflow (docs/tracking.md); '' leaves aliases alone."""
    cluster: ClusterConfig = ClusterConfig()

    @property
    def identity(self) -> dict[str, object]:
        data = super().identity
        data.pop("promote_by", None)  # what is done with the scores
        return data


class RunAll(Pretrain):
    """Run the whole workflow as one job: the flags of pretrain, earlier stages below --build., scores --benchmark."""

    benchmark: Benchmark = Benchmark()
    """How the model is scored; set --benchmark.split train where your clips have no test split."""


class InspectShards(StageConfig):
    """Say what frame shards and codes hold, verify them, and draw contact sheets."""

    bare_values: ClassVar[dict[str, str]] = {"verify": "full"}
    frames: str = ""
    """Frame shards."""
    codes: str = ""
    """Codes of these frames: the folder of one tokenizer's, or the one above it."""
    verify: Literal["no", "quick", "full"] = "no"
    """quick: sizes and footers; full, also without a value: every byte, row and JPEG. Exit code 1 on a fault."""
    sheets: int = Field(default=0, ge=0)
    """Draw so many random clips of each split as contact sheets."""
    sheet_clips: str = ""
    """Draw the clips of these ids, separated by commas."""
    seed: int = 0
    """Seed of the clips that are drawn."""
    cluster: ClusterConfig = ClusterConfig()


class Report(StageConfig):
    """Print what the runs under a root made, as one table."""

    root: str = "runs/demo"
    """Root of a whole workflow."""


class Sweep(Pretrain):
    """Try settings of pre-training: a trial is a pretrain with some of its settings changed, the flags are pretrain's.

    Run the same command again to go on, or with more values, trials or seeds to add to what is there.
    """

    folder: ClassVar[str] = "tune"
    space: str = ""
    """What is tried: a space that comes with the package (masking_ratio, codebook_size, focal_loss, lr_batch), or the
    path of a YAML file with lines like `optim.lr: [1e-4, 3e-4]` or `optim.lr: {low: 1e-5, high: 1e-3, log: true}`."""
    values: str = ""
    """Other values for a space of one setting, separated by commas."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination; random: `trials` draws; optuna: `trials` proposals of TPE (pip install evilm[tune])."""
    trials: int = Field(default=8, ge=1)
    """Settings to try in a random or optuna search."""
    seeds: int = Field(default=2, ge=1)
    """Times that each setting is tried, with schedule.seed, schedule.seed + 1 ..."""
    search_seed: int = 0
    """Seed of random and optuna searches."""
    score: str = "match_auc"
    """Held-out metric that trials are compared by; low is good for names that end in loss, high for others."""
    stopping: Literal["halving", "none"] = "halving"
    """halving: at each rung the best 1/reduction of the settings, by the mean over their seeds, go on; none: all do."""
    grace_epochs: float = Field(default=1, gt=0)
    """Epochs of the first rung, which every setting reaches; each further rung is at `reduction` times as many."""
    reduction: float = Field(default=3, gt=1)
    """Share of the settings that go on from a rung, inverted: 3 keeps a third, rounded up. Also the number of settings
    that Optuna proposes at a time."""
    concurrent: int = Field(default=0, ge=0)
    """Trials at the same time; 0: as many as the CPUs and GPUs of the cluster can hold now."""

    @property
    def base(self) -> Pretrain:
        """Return what all trials have in common."""
        return Pretrain.model_validate(self.model_dump(include=set(Pretrain.model_fields))).resolved()

    @property
    def identity(self) -> dict[str, object]:
        """Return the settings that trials share; the space and its search may change and leave trials as they are."""
        data: dict[str, object] = super().identity
        for name in Sweep.model_fields.keys() - Pretrain.model_fields.keys():
            data.pop(name, None)
        build = {name: getattr(self.build, name).identity for name in Upstream.model_fields}
        schedule = dict(self.schedule.model_dump(mode="json"))
        length = {name: schedule[name] for name in _LENGTH}  # trials are compared by these evaluations
        return data | {"build": build, "views": self.views, "length": length}

    @model_validator(mode="after")
    def _space_fits(self) -> "Sweep":
        if self.space:
            space = read_space(self.space, self.values)
            check_space(space, self.base, self.seeds)
            check_score(self.score, space, self.base)
            if self.search == "grid" and (ranges := [name for name, axis in space.items() if isinstance(axis, Range)]):
                raise ValueError(f"{', '.join(ranges)}: a range has no grid; list values, or use --search random")
        elif self.values:
            raise ValueError(f"values = {self.values!r} are for a space of one setting; name it with --space")
        return self


class MaskingRatio(Sweep):
    """Try shares of masked regions. All flags are those of tune/sweep.py."""

    space: str = "masking_ratio"


class CodebookSize(Sweep):
    """Try numbers of codes, with a tokenizer for each. All flags are those of tune/sweep.py."""

    space: str = "codebook_size"


class FocalLoss(Sweep):
    """Try exponents of the tokenizer's word loss, with a tokenizer for each. All flags are those of tune/sweep.py."""

    space: str = "focal_loss"


class LrBatch(Sweep):
    """Try learning rates and batch sizes. All flags are those of tune/sweep.py."""

    space: str = "lr_batch"
    score: str = "loss"
    """Held-out metric that trials are compared by: the loss, since what is masked and asked is the same in all."""


STAGES: dict[str, type[StageConfig]] = {
    "render_corpus": RenderCorpus,
    "shard_videos": ShardVideos,
    "build_vocab": BuildVocab,
    "build_items": BuildItems,
    "train_tokenizer": TrainTokenizer,
    "precompute_codes": PrecomputeCodes,
    "pretrain": Pretrain,
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
