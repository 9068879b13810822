"""The command of inspection: finds shards and codes, has them looked at, and prints and draws what was found."""

import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from evilm.config.stages import InspectShards
from evilm.errors import ConfigError, ShardError, UsageError
from evilm.inspect import inspection_text
from evilm.inspect.contact_sheets import SHEET_CLIPS, SheetClip, choose_clips, draw_sheet, find_clips, load_clips
from evilm.inspect.cross_checks import progress
from evilm.inspect.inspection import inspect_all
from evilm.inspect.shard_figure import draw_stats
from evilm.io import storage
from evilm.io.outputs import CONFIG, SUMMARY
from evilm.shards import MANIFEST, CodesManifest, FrameManifest, pair


def inspect_shards(config: InspectShards) -> dict[str, Any]:
    """Look at frame shards and print what there is; where `config.out` is named, draw it too.

    Returns:
        The summary: clips, distributions, reasons, duplicates, code usage, number of problems.

    Raises:
        UsageError: --frames is missing, or --out where pictures are wanted.
        ShardError: there are no finished shards, or codes of others; or they can't be read and are not to be verified.
    """
    if not config.frames:
        raise UsageError("--frames is missing; name a folder of frame shards")
    if (config.sheets or config.sheet_clips) and not config.out:
        raise UsageError("--out is missing; name a folder for the contact sheets")
    began, out = time.monotonic(), _claim(config.out)
    frames = load_frames(config.frames)
    codes = load_codes(config.codes, frames) if config.codes else None
    ids = [clip_id.strip() for clip_id in config.sheet_clips.split(",") if clip_id.strip()]
    asked = find_clips(frames, ids)
    look = inspect_all(frames, codes, config.verify, config.cluster.num_workers)
    sys.stdout.write(inspection_text.render(look) + "\n")
    pictures: list[str] = []
    if out:
        storage.write_bytes(storage.join(out, "stats.png"), draw_stats(look.stats, look.reasons))
        pictures = ["stats.png"]
        for split in frames.splits if config.sheets else ():
            chosen = choose_clips(frames, split, config.sheets, config.seed)
            title = f"{split}: {len(chosen)} of {frames.num_clips(split):,} clips, seed {config.seed}"
            pictures += _draw_sheets(out, split, title, load_clips(frames, chosen, codes), frames)
        if asked:
            clips = load_clips(frames, asked, codes)
            pictures += _draw_sheets(out, "clips", f"{len(asked)} clips by id", clips, frames)
        sys.stdout.write(f"pictures: {', '.join(storage.join(out, name) for name in pictures)}\n")
    summary = inspection_text.summary(look) | {
        "out": out,
        "pictures": pictures,
        "seconds": round(time.monotonic() - began, 1),
    }
    if out:
        storage.write_json(storage.join(out, SUMMARY), summary)
    return summary


def _claim(out: str) -> str:
    """Return the folder for pictures and summary; refuse one that holds the result of another command."""
    names = set(storage.list_names(out)) if out else set()
    if taken := sorted({MANIFEST, CONFIG} & names):
        raise ConfigError(f"--out {out} holds {taken[0]} of another command; choose another folder for what is drawn")
    return storage.absolute(out) if out else ""


def load_frames(uri: str) -> FrameManifest:
    """Load the manifest of a folder of frame shards; say of an unfinished run how far it is.

    Raises:
        ShardError: no finished frame shards there.
    """
    if storage.exists(storage.join(uri, MANIFEST)):
        return FrameManifest.load(uri)
    done, planned = progress(uri)
    if planned:
        raise ShardError(
            f"{uri} is unfinished, {done} of {planned} shards are committed; "
            "the same pipelines/shard_videos.py command continues"
        )
    return FrameManifest.load(uri)


def load_codes(uri: str, frames: FrameManifest) -> CodesManifest:
    """Load the codes of these frames: at `uri`, or in the one folder below it that has them.

    Raises:
        ShardError: none are there, they are of other frames, or those of several tokenizers are there.
    """
    if storage.exists(storage.join(uri, MANIFEST)):
        codes = CodesManifest.load(uri)
        for split in frames.splits:
            pair(frames, codes, split)
        return codes
    names = [name for name in storage.list_names(uri) if storage.exists(storage.join(uri, name, MANIFEST))]
    found = [CodesManifest.load(storage.join(uri, name)) for name in names]
    fitting = [codes for codes in found if codes.frames == frames.fingerprint]
    if len(fitting) > 1:
        raise ShardError(
            f"{uri} holds {len(fitting)} sets of codes of these frames; name one, --codes {fitting[0].uri}"
        )
    if not fitting:
        there = f"{len(names)} sets of codes of other frames" if names else "no finished codes"
        raise ShardError(f"{uri} holds {there}; run pipelines/precompute_codes.py --frames {frames.uri} --out {uri}")
    return fitting[0]


def _draw_sheets(out: str, name: str, title: str, clips: Iterator[SheetClip], frames: FrameManifest) -> list[str]:
    """Draw pictures of clips, `sheets/<name>-00.png` and on; return their names."""
    names, squashed = list[str](), frames.sampling.get("resize") == "squash"
    while some := list(islice(clips, SHEET_CLIPS)):
        names.append(f"sheets/{name}-{len(names):02d}.png")
        storage.write_bytes(storage.join(out, names[-1]), draw_sheet(title, some, frames.frame_px, squashed))
    return names
