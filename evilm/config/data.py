"""Settings of the data: the embedded corpus, manifests, frame shards, codes, vocabulary."""

from typing import Literal

from pydantic import Field

from evilm.config.base import Config


class CorpusConfig(Config):
    """The embedded corpus: a seeded world of moving textured objects, rendered to captioned H.264 clips."""

    seed: int = 0
    """Seed of the whole world; the same seed gives the same captions and the same pixels."""
    train_clips: int = Field(default=2000, gt=0)
    """Clips of the train split."""
    val_clips: int = Field(default=160, ge=0, le=100_000)
    """Clips of the val split, drawn like train."""
    test_clips: int = Field(default=240, ge=0, le=100_000)
    """Clips of the test split; a share of them holds combinations never seen in training."""
    heldout_ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of the test clips that hold a colour-shape-motion combination absent from train and val."""
    width_px: int = Field(default=176, ge=32, multiple_of=2)
    """Width of a rendered frame."""
    height_px: int = Field(default=144, ge=32, multiple_of=2)
    """Height of a rendered frame."""
    fps: int = Field(default=12, gt=0)
    """Frames per second of the encoded clips."""
    seconds: float = Field(default=2.0, gt=0)
    """Length of a clip; each clip varies by a quarter around it."""


class ColumnsConfig(Config):
    """Where a manifest keeps what we need. WebVid's names are the defaults; an empty name means 'no such column'."""

    videoid: str = "videoid"
    """Column of the clip's unique id."""
    caption: str = "name"
    """Column of the caption."""
    page_dir: str = "page_dir"
    """Column of the folder below the video root; '' or a missing column: files lie at the root."""
    path: str = ""
    """Column of the path below the video root with its ending; '' builds page_dir/videoid + ending."""
    duration: str = "duration"
    """Column of the duration; advisory, the file is measured."""
    split: str = "split"
    """Column of the split (train, val, test); where it is missing, every clip gets --split."""


class FramesConfig(Config):
    """How a clip becomes frames. Everything here is part of the fingerprint of the shards."""

    num_frames: int = Field(default=4, ge=1, le=64)
    """Sparse frames stored per clip (Sec. 4.1: 4), one from each of as many equal spans of time."""
    frame_px: int = Field(default=256, ge=32, le=1024, multiple_of=32)
    """Side of the stored square frame (Sec. 4.1: 256)."""
    resize: Literal["crop", "squash", "pad"] = "crop"
    """crop: short side to frame_px, centre square; squash: both sides; pad: long side, black borders."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    """Quality of the stored JPEGs (4:2:0)."""
    sampling: Literal["centre", "random"] = "centre"
    """Where in its span a frame is taken: the middle, or a seeded random time."""
    decoder: Literal["auto", "pyav", "decord"] = "auto"
    """auto: PyAV, then decord where PyAV got stuck on a plain file; decord: only on plain files, PyAV on others."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """A decode that takes longer is killed, retried once with the other decoder, then quarantined."""
    min_side_px: int = Field(default=32, ge=1)
    """Videos with a side below this are quarantined as too_small."""
    seed: int = 0
    """Seed of the order of clips in shards, and of random sampling."""
    shard_clips: int = Field(default=1000, gt=0)
    """Clips per shard file: the unit of work, retry, commit and resume."""
    row_group_clips: int = Field(default=64, gt=0)
    """Clips per Parquet row group: the unit of reading."""


class VocabConfig(Config):
    """The word-piece vocabulary of the text encoder (Sec. 4.1)."""

    keep_ratio: float = Field(default=0.3, gt=0, le=1)
    """Share of a given vocabulary that is kept, the most frequent entries first (Sec. 4.1: 30 %)."""
    train_size: int = Field(default=9157, ge=64)
    """Entries of a vocabulary trained from captions, where no vocab.txt is given."""
    min_frequency: int = Field(default=1, ge=1)
    """A word piece met less often is not learned when training."""
