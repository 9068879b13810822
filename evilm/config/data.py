"""Settings of the data: the embedded corpus, manifests, frame shards, codes, vocabulary."""

from typing import Literal

from pydantic import Field, model_validator

from evilm.config.base import Config

VIDEO_ENDINGS = (
    ".mp4",
    ".webm",
    ".mkv",
    ".mov",
    ".avi",
    ".gif",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".ogv",
    ".wmv",
    ".3gp",
    ".m2ts",
    ".mts",
    ".vob",
    ".asf",
)
"""Endings that a video may have; where several fit an id, the first one wins."""


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
    """Columns of a manifest: a known layout, and the columns that differ from it.

    A column that is not set is the layout's; an empty name ('') means 'no such column'.
    """

    layout: Literal["auto", "webvid", "video2dataset", "openvid", "internvid", "panda", "koala", "webdataset"] = "auto"
    """Whose columns a manifest has; auto goes by the header of each file, and takes webvid where nothing fits."""
    videoid: str | None = None
    """Column of the clip's unique id, or of the video's where rows are spans of videos."""
    caption: str | None = None
    """Column of the caption."""
    page_dir: str | None = None
    """Column of the folder below the video root; without it files lie at the root."""
    path: str | None = None
    """Column of the path below the video root with its ending, or of a URL; without it page_dir/videoid + ending."""
    url: str | None = None
    """Column of the http(s) URL that --fetch.urls downloads from where there is no file."""
    start: str | None = None
    """Column of where the clip begins in its video; with no end column, of a list of [start, end] pairs, or of one."""
    end: str | None = None
    """Column of where the clip ends in its video; both may hold lists, one entry per clip."""
    duration: str | None = None
    """Column of the duration; advisory, the file is measured."""
    repeats: Literal["auto", "captions", "duplicates"] = "auto"
    """What rows are that have the id and the video of another row: more captions of one clip, or duplicates, which are
    quarantined. auto: captions where more than half of all rows are such, as in tables with one row per caption."""
    split: str | None = None
    """Column of the split (train, val, test); where it is missing, every clip gets --split."""


class FetchConfig(Config):
    """Fetching of videos that are not on this machine. The clips do not depend on it."""

    urls: bool = False
    """Download a clip from the manifest's URL where no file of it lies below --videos."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Downloads at the same time in one worker process."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Give up an attempt when connecting, or waiting for the next bytes, takes this long."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Give up a video after this long, all attempts together."""
    retries: int = Field(default=4, ge=0, le=20)
    """Further attempts after a failure that may pass: time-outs, 429, 5xx, cut connections."""
    max_mb: int = Field(default=1024, ge=1)
    """Refuse to download a video of more than so many MiB."""
    allow_private: bool = False
    """Let URLs lead to this machine and to private networks; only for manifests that you wrote yourself."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the video root; only for folders that you filled yourself."""


class FramesConfig(Config):
    """Sampling of a clip's frames. Everything here is part of the fingerprint of the shards."""

    num_frames: int = Field(default=4, ge=1, le=64)
    """Sparse frames of a clip (Sec. 4.1: 4), one from each of as many equal spans of time."""
    frames_stored: int = Field(default=0, ge=0, le=64)
    """Frames stored per clip, a multiple of num_frames: training then draws num_frames of them anew each epoch.
    0 stores num_frames. shard_videos also takes --frames-stored, and --frames for num_frames."""
    frame_px: int = Field(default=256, ge=32, le=1024, multiple_of=32)
    """Side of the stored square frame (Sec. 4.1: 256)."""
    resize: Literal["crop", "squash", "pad"] = "crop"
    """crop: short side to frame_px, centre square; squash: both sides; pad: long side, black borders."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    """Quality of the stored JPEGs (4:2:0)."""
    sampling: Literal["centre", "random"] = "centre"
    """Where in its span a frame is taken: the middle, or a seeded random time."""
    decoder: Literal["auto", "pyav", "decord"] = "auto"
    """auto: PyAV; decord: on plain files, where it has wheels (not on arm64), PyAV on others. Same pixels."""
    skip_nonref: bool = True
    """Leave out frames that no other depends on, on the way to the wanted ones (H.264, HEVC): faster, same pixels.
    Damage in what is left out is not noticed, nor does it matter to the stored frames."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """CPU time of a decode, plus half a second per MiB: one that takes more, or hangs, is killed, retried once, then
    quarantined."""
    min_side_px: int = Field(default=32, ge=1)
    """Videos with a side below this are quarantined as too_small."""
    max_pixels: int = Field(default=7680 * 4320, ge=32 * 32)
    """Videos with more pixels per frame are quarantined as too_large, before they are decoded."""
    seed: int = 0
    """Seed of the order of clips in shards, and of random sampling."""
    shard_clips: int = Field(default=1000, gt=0)
    """Clips per shard file: the unit of work, retry, commit and resume."""
    row_group_clips: int = Field(default=64, gt=0)
    """Clips per Parquet row group: the unit of reading."""

    @model_validator(mode="after")
    def _check(self) -> "FramesConfig":
        if self.frames_stored % self.num_frames:
            raise ValueError(
                f"frames_stored = {self.frames_stored} is no multiple of num_frames = {self.num_frames}; use e.g. "
                f"{2 * self.num_frames}, or 0 to store num_frames"
            )
        return self

    @property
    def stored(self) -> int:
        """Frames stored per clip."""
        return self.frames_stored or self.num_frames


class VocabConfig(Config):
    """The word-piece vocabulary of the text encoder (Sec. 4.1)."""

    keep_ratio: float = Field(default=0.3, gt=0, le=1)
    """Share of a given vocabulary that is kept, the most frequent entries first (Sec. 4.1: 30 %)."""
    train_size: int = Field(default=9157, ge=64)
    """Entries of a vocabulary trained from captions, where no vocab.txt is given."""
    min_frequency: int = Field(default=1, ge=1)
    """A word piece met less often is not learned when training."""
