"""One class per door: its places, its settings. A preset holds one section per door, under the door's name."""

from pydantic import Field, model_validator

from evilm.config.base import Config
from evilm.config.data import ColumnsConfig, CorpusConfig, FramesConfig, VocabConfig
from evilm.config.model import StudentConfig, VideoTokenizerConfig
from evilm.config.train import ClusterConfig, ObjectivesConfig, TrackingConfig, TrainConfig


class Door(Config):
    """What every door takes."""

    preset: str = ""
    """tiny, paper, or the path of a YAML file; flags go over it."""
    dry_run: bool = False
    """Print the resolved settings and end."""
    overwrite: bool = False
    """Delete what an earlier run with other settings left at --out."""
    out: str = ""
    """Where the result goes, a local path or s3://bucket/key."""
    tracking: TrackingConfig = TrackingConfig()

    @property
    def identity(self) -> dict[str, object]:
        """The settings that decide what the result is: places and machinery left out."""
        data = self.model_dump(mode="json")
        precision = data.get("cluster", {}).get("precision")  # alone of the machinery, it changes the numbers
        for name in ("preset", "dry_run", "overwrite", *_PLACES, "cluster", "tracking"):
            data.pop(name, None)
        if precision is not None:
            data["precision"] = precision
        for name in _CADENCE:
            data.get("schedule", {}).pop(name, None)
        return data


_CADENCE = ("log_every_steps", "checkpoint_every_steps", "keep_checkpoints")
_PLACES = ("out", "root", "manifest", "videos", "frames", "codes", "vocab", "tokenizer", "model", "corpus_root")


class RenderCorpus(Door):
    """Render the embedded corpus: captioned H.264 clips and their manifest."""

    corpus: CorpusConfig = CorpusConfig()
    cluster: ClusterConfig = ClusterConfig()


class BuildVocab(Door):
    """Keep the frequent words of a vocabulary, or train one, on the captions of a manifest."""

    manifest: str = ""
    """CSV with captions, or COCO captions JSON."""
    base_vocab: str = ""
    """A BERT vocab.txt to keep the frequent part of; '' trains a vocabulary."""
    split: str = "train"
    """Count captions of this split only, where the manifest has splits."""
    columns: ColumnsConfig = ColumnsConfig()
    words: VocabConfig = VocabConfig()


class ShardVideos(Door):
    """Cut a CSV and a folder of videos into Parquet frame shards."""

    manifest: str = ""
    """CSV with one clip per row, WebVid's columns by default."""
    videos: str = ""
    """Root folder of the videos."""
    split: str = "train"
    """Split of clips whose row names none."""
    limit: int = Field(default=0, ge=0)
    """Use only the first N rows; 0 uses all."""
    max_failed_share: float = Field(default=0.9, ge=0, le=1)
    """Fail (exit 1) when more than this share of the clips is quarantined."""
    columns: ColumnsConfig = ColumnsConfig()
    sampling: FramesConfig = FramesConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def identity(self) -> dict[str, object]:
        data = super().identity
        data.pop("max_failed_share", None)  # decides whether the result is good enough, not what it is
        return data


class TrainTokenizer(Door, TrainConfig):
    """Train the semantic video tokenizer (Sec. 3.3) on frame shards."""

    frames: str = ""
    """Frame shards."""
    vocab: str = ""
    """Vocabulary of the caption words."""
    arch: VideoTokenizerConfig = VideoTokenizerConfig()


class PrecomputeCodes(Door):
    """Write the tokenizer's codes of every clip, row-aligned with the frame shards."""

    frames: str = ""
    """Frame shards."""
    tokenizer: str = ""
    """Video tokenizer."""
    batch_clips: int = Field(default=64, ge=1)
    """Clips per forward pass."""
    cluster: ClusterConfig = ClusterConfig()


class Upstream(Config):
    """How `pretrain` builds what is missing: the sections of the other doors."""

    render_corpus: RenderCorpus = RenderCorpus()
    shard_videos: ShardVideos = ShardVideos()
    build_vocab: BuildVocab = BuildVocab()
    train_tokenizer: TrainTokenizer = TrainTokenizer()
    precompute_codes: PrecomputeCodes = PrecomputeCodes()


class Pretrain(Door, TrainConfig):
    """Pre-train E-ViLM (Eq. 8) against cached codes; builds what is not named under --root."""

    root: str = "runs/demo"
    """Where inputs that are not named are looked for, and built when missing."""
    manifest: str = ""
    """CSV of your own clips; '' uses the embedded corpus when frames must be built."""
    videos: str = ""
    """Root folder of your own clips."""
    frames: str = ""
    """Frame shards."""
    codes: str = ""
    """Code shards; the folder that holds one folder per tokenizer."""
    vocab: str = ""
    """Vocabulary."""
    tokenizer: str = ""
    """Video tokenizer whose codes are the targets."""
    arch: StudentConfig = StudentConfig()
    objectives: ObjectivesConfig = ObjectivesConfig()
    columns: ColumnsConfig = ColumnsConfig()
    build: Upstream = Upstream()

    @property
    def identity(self) -> dict[str, object]:
        data = super().identity
        data.pop("columns", None)
        data.pop("build", None)  # what was built is covered by the inputs' fingerprints
        return data

    @model_validator(mode="after")
    def _same_grid(self) -> "Pretrain":
        tokenizer = self.build.train_tokenizer.arch
        if not self.tokenizer and (tokenizer.grid, tokenizer.num_frames) != (self.arch.grid, self.arch.num_frames):
            raise ValueError(
                f"the tokenizer gives {tokenizer.num_frames} x {tokenizer.grid} x {tokenizer.grid} codes per clip, the "
                f"model {self.arch.num_frames} x {self.arch.grid} x {self.arch.grid} regions; set arch.input_px / 32 "
                "equal to build.train_tokenizer.arch.input_px / patch_px, and the same num_frames"
            )
        return self


class Benchmark(Door):
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
    cluster: ClusterConfig = ClusterConfig()


class Report(Door):
    """Print what the runs under a root made, as one table."""

    root: str = "runs/demo"
    """Root of a whole workflow."""


DOORS: dict[str, type[Door]] = {
    "render_corpus": RenderCorpus,
    "shard_videos": ShardVideos,
    "build_vocab": BuildVocab,
    "train_tokenizer": TrainTokenizer,
    "precompute_codes": PrecomputeCodes,
    "pretrain": Pretrain,
    "benchmark": Benchmark,
    "report": Report,
}
"""Every door by its file's name, which is also its section in a preset."""
