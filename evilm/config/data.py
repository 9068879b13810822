"""Settings of the data: the embedded corpus, manifests, frame shards, codes, vocabulary."""

from typing import Literal

from pydantic import Field, model_validator

from evilm.config.base import Common, Config, Incidental

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
"""Extensions that a video may have; where several files match an id, the first extension here wins."""


class CorpusConfig(Config):
    """The embedded corpus: seeded scenes of moving textured objects, rendered to captioned H.264 clips."""

    seed: int = 0
    """Seed of the corpus; the same seed gives the same captions and the same pixels."""
    train_clips: Common[int] = Field(default=2000, gt=0)
    """Clips of the train split."""
    val_clips: Common[int] = Field(default=160, ge=0, le=100_000)
    """Clips of the val split, drawn like those of the train split."""
    test_clips: Common[int] = Field(default=240, ge=0, le=100_000)
    """Clips of the test split; a share of them holds combinations never seen in training."""
    heldout_ratio: float = Field(default=0.5, ge=0, le=1)
    """Share of the test clips, 0 to 1, with a combination of colour, shape and motion that train and val lack."""
    width_px: int = Field(default=176, ge=32, multiple_of=2)
    """Width of a rendered frame in pixels."""
    height_px: int = Field(default=144, ge=32, multiple_of=2)
    """Height of a rendered frame in pixels."""
    fps: int = Field(default=12, gt=0)
    """Frames per second of the encoded clips."""
    seconds: float = Field(default=2.0, gt=0)
    """Mean length of a clip in seconds; lengths vary by up to a quarter."""


class ColumnsConfig(Config):
    """Columns of a manifest: a known layout, and the columns that differ from it.

    A column that is not set is the layout's; an empty name ('') means 'no such column'.
    """

    layout: Common[str] = "auto"
    """Data set whose column names the manifest has: webvid, video2dataset, openvid, internvid, panda, koala, webdataset
    or one of an installed package; auto recognises it by each file's header, or assumes webvid."""
    videoid: str | None = None
    """Column of the clip's unique id, or of the video's id where rows are spans of videos."""
    caption: Common[str | None] = None
    """Column of the caption."""
    page_dir: str | None = None
    """Column of the folder below the video root; without it videos lie directly in the root."""
    path: str | None = None
    """Column of the video's path below the video root, or of its URL; without it the path is page_dir/videoid with any
    known extension."""
    url: str | None = None
    """Column of the http(s) URL from which --fetch.urls downloads a video that has no file."""
    start: str | None = None
    """Column of the clip's start in its video; without an end column it holds [start, end], or a list of such pairs."""
    end: str | None = None
    """Column of the clip's end in its video; start and end may also hold lists with one entry per clip."""
    duration: str | None = None
    """Column of the duration, which is not used: durations are measured from the files."""
    repeats: Literal["auto", "captions", "duplicates"] = "auto"
    """Meaning of rows that repeat the id and video of another row. captions: further captions of the same clip;
    duplicates: quarantined; auto: captions if more than half of all rows are repeats, as in tables with one row per
    caption."""
    split: str | None = None
    """Column of the split (train, val, test); clips without one get --split."""


class FetchConfig(Config):
    """Fetching of videos that are not on this machine. The clips do not depend on it."""

    urls: Common[bool] = False
    """Download a clip from the manifest's URL if it has no file below --videos."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Simultaneous downloads per worker process."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds to wait for a connection, or for the next bytes, before an attempt fails."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Seconds after which a video is given up, all attempts together."""
    retries: int = Field(default=4, ge=0, le=20)
    """Further attempts after a transient failure: time-outs, HTTP 429 and 5xx, cut connections."""
    max_mb: int = Field(default=1024, ge=1)
    """Largest video to download, in MiB."""
    allow_private: bool = False
    """Allow URLs that lead to this machine or to private networks; only for manifests that you wrote yourself."""
    follow_links: bool = False
    """Follow symbolic links that lead out of the video root; only for folders that you filled yourself."""


class FramesConfig(Config):
    """Sampling of a clip's frames. All but `decode_timeout_s` is part of the fingerprint of the shards."""

    num_frames: Common[int] = Field(default=4, ge=1, le=64)
    """Sparse frames of a clip (Sec. 4.1: 4), one from each of that many equal time spans."""
    frames_stored: Common[int] = Field(default=0, ge=0, le=64)
    """Frames stored per clip, a multiple of num_frames: training then draws num_frames of them anew each epoch.
    0 stores num_frames."""
    frame_px: Common[int] = Field(default=256, ge=32, le=1024, multiple_of=32)
    """Side of the stored square frame in pixels (Sec. 4.1: 256)."""
    resize: Common[Literal["crop", "squash", "pad"]] = "crop"
    """crop: resize the short side to frame_px, keep the centre square; squash: resize both sides; pad: resize the long
    side, add black borders."""
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    """Quality of the stored JPEGs (4:2:0), 1 to 100."""
    sampling: Literal["centre", "random"] = "centre"
    """Time at which a frame is taken from its span: the middle, or a seeded random time."""
    decoder: Literal["auto", "pyav", "decord"] = "auto"
    """auto: PyAV; decord: decord for simple files where it is installed (no wheels for arm64), PyAV for others. The
    pixels are the same."""
    skip_nonref: bool = True
    """Skip decoding of frames that no other frame depends on (H.264, HEVC), unless they are sampled: faster, same
    pixels. Damage in skipped frames goes unnoticed; it does not affect the stored frames."""
    decode_timeout_s: Incidental[float] = Field(default=60.0, gt=0)
    """CPU seconds for one decode, plus half a second per MiB; a decode that takes longer or hangs is killed, retried
    once, then quarantined. It may change between runs: `--retry decode_timeout` with more seconds."""
    min_side_px: int = Field(default=32, ge=1)
    """Videos with a side shorter than this, in pixels, are quarantined as too_small."""
    max_pixels: int = Field(default=7680 * 4320, ge=32 * 32)
    """Videos with more pixels per frame are quarantined as too_large, before they are decoded."""
    seed: int = 0
    """Seed of the order of clips in shards, and of random sampling."""
    shard_clips: Common[int] = Field(default=1000, gt=0)
    """Clips per shard file: the unit of work, retry, commit and resume."""
    row_group_clips: int = Field(default=64, gt=0)
    """Clips per Parquet row group: the unit of reading."""

    @model_validator(mode="after")
    def _check(self) -> "FramesConfig":
        if self.frames_stored % self.num_frames:
            raise ValueError(
                f"frames_stored = {self.frames_stored} is not a multiple of num_frames = {self.num_frames}; use e.g. "
                f"{2 * self.num_frames}, or 0 to store num_frames"
            )
        return self

    @property
    def stored(self) -> int:
        """Return the number of frames stored per clip."""
        return self.frames_stored or self.num_frames


class VocabConfig(Config):
    """The word-piece vocabulary of the text encoder (Sec. 4.1)."""

    keep_ratio: Common[float] = Field(default=0.3, gt=0, le=1)
    """Share of a given vocabulary to keep, most frequent entries first (Sec. 4.1: 30 %)."""
    train_size: Common[int] = Field(default=9157, ge=64)
    """Entries of a vocabulary that is trained from captions, where no vocab.txt is given."""
    min_frequency: int = Field(default=1, ge=1)
    """Occurrences that a word piece needs to be learned in training."""
