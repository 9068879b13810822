"""Plan the corpus as a list of clips, write its manifest, and render any part of it.

Planning is cheap and pure. A rendered clip depends only on its plan, not on order, restarts or the number of workers.
The video root of a corpus is `<root>/videos`.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from evilm.config.base import fingerprint
from evilm.config.data import CorpusConfig
from evilm.io.storage import exists, join, write_bytes
from evilm.seeds import named_rng
from evilm.synth.grammar import write_caption
from evilm.synth.h264 import encode_h264
from evilm.synth.render import render_frames
from evilm.synth.scenes import sample_scene
from evilm.synth.world import Scene, Triple, heldout_triples

WORLD_VERSION = 1
"""Increase when scenes, captions or drawing change, so that clips of two versions never share a name."""
MANIFEST_NAME = "manifest.csv"
VIDEOS_NAME = "videos"

_PAGE_CLIPS = 50
_SPLIT_STARTS = {"test": 0, "val": 100_000, "train": 200_000}  # growing a split does not change the other ones


@dataclass(frozen=True)
class PlannedClip:
    """One clip before it is rendered."""

    videoid: str
    split: str
    page_dir: str
    caption: str
    heldout: bool
    """True if the main object has a held-out combination."""
    num_frames: int
    scene: Scene

    @property
    def path(self) -> str:
        """Return the path of the file below the video root."""
        return f"{self.page_dir}/{self.videoid}.mp4"


def plan_corpus(config: CorpusConfig) -> list[PlannedClip]:
    """Plan every clip of the corpus: train, val, then test; pure, and fast enough to repeat in each process."""
    world = _world_id(config)
    heldout = heldout_triples(config.seed)
    planned: list[PlannedClip] = []
    for split, num_clips in (("train", config.train_clips), ("val", config.val_clips), ("test", config.test_clips)):
        taken: set[str] = set()
        for index in range(num_clips):
            clip = _plan_clip(config, world, heldout, split, index, taken)
            if split == "test":
                taken.add(clip.caption.lower())
            planned.append(clip)
    return planned


def _world_id(config: CorpusConfig) -> str:
    """Return an id of all settings that affect clips: all but the numbers of clips."""
    fixed = config.model_dump(exclude={"train_clips", "val_clips", "test_clips"})
    return fingerprint({"version": WORLD_VERSION, **fixed})


def _plan_clip(
    config: CorpusConfig, world: str, heldout: Sequence[Triple], split: str, index: int, taken: set[str]
) -> PlannedClip:
    """Plan the clip at `index` of its split; draw again while its caption is in `taken`."""
    place = _SPLIT_STARTS[split] + index
    page = place // _PAGE_CLIPS * _PAGE_CLIPS
    # Held-out clips are spread evenly, so that any part of the test split has some.
    want = split == "test" and int((index + 1) * config.heldout_ratio) > int(index * config.heldout_ratio)
    draw = 0
    while True:
        rng = named_rng("clip", world, split, index, draw)
        num_frames = max(4, round(config.fps * config.seconds * float(rng.uniform(0.75, 1.25))))
        scene = sample_scene(rng, heldout, want)
        caption = write_caption(scene, rng)
        if caption.lower() not in taken:
            page_dir = f"{page + 1:06d}_{page + _PAGE_CLIPS:06d}"
            return PlannedClip(_videoid(world, place), split, page_dir, caption, want, num_frames, scene)
        draw += 1


def _videoid(world: str, place: int) -> str:
    """Return ten digits, distinct for every place: a step coprime to the modulus visits each number once."""
    modulus = 9_000_000_000
    return str(1_000_000_000 + (int(world, 16) + place * 7_654_321_001) % modulus)


def manifest_csv(planned: Iterable[PlannedClip], config: CorpusConfig) -> str:
    """Format the corpus as a WebVid CSV with the split and the held-out flag as extra columns."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["videoid", "contentUrl", "duration", "page_dir", "name", "split", "heldout", "combination"])
    for clip in planned:
        seconds = max(1, round(clip.num_frames / config.fps))
        duration = f"PT{seconds // 3600:02d}H{seconds // 60 % 60:02d}M{seconds % 60:02d}S"
        combination = " ".join(clip.scene.objects[0].triple)
        table.writerow(
            [clip.videoid, f"evilm://corpus/{clip.videoid}", duration, clip.page_dir, clip.caption, clip.split,
             int(clip.heldout), combination]
        )  # fmt: skip
    return buffer.getvalue()


def write_manifests(planned: Iterable[PlannedClip], config: CorpusConfig, root: str) -> str:
    """Write `<root>/manifest.csv` and return its path."""
    uri = join(root, MANIFEST_NAME)
    write_bytes(uri, manifest_csv(planned, config).encode())
    return uri


def clip_frames(clip: PlannedClip, config: CorpusConfig) -> UInt8[np.ndarray, "frame row col rgb"]:
    """Render the pixels of a clip."""
    return render_frames(clip.scene, clip.videoid, clip.num_frames, config.fps, config.width_px, config.height_px)


def render_clip(clip: PlannedClip, config: CorpusConfig) -> bytes:
    """Render a clip to an mp4 file; the bytes depend only on the versions of numpy, FFmpeg and x264."""
    return encode_h264(clip_frames(clip, config), config.fps)


def render_and_write(planned: Iterable[PlannedClip], config: CorpusConfig, root: str) -> int:
    """Render the clips missing below `<root>/videos`, each written atomically; return their number."""
    num_written = 0
    for clip in planned:
        uri = join(root, VIDEOS_NAME, clip.path)
        if not exists(uri):
            write_bytes(uri, render_clip(clip, config))
            num_written += 1
    return num_written
