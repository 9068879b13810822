"""Trainings on shards that are still being made: one that began on a publication goes on with that one."""

import logging

from evilm.io.outputs import CONFIG, SUMMARY
from evilm.io.ownership import published
from evilm.shards import CodesManifest, FrameManifest, is_published, pinned

logger = logging.getLogger(__name__)


def load_frames(out: str, place: str) -> FrameManifest:
    """The frames that a training is to see: those that it began on where shards were missing then, else the newest.

    Args:
        out: of the training.
        place: folder of the frame shards.

    Raises:
        ShardError: there are none.
    """
    newest, fingerprint = FrameManifest.load(place), _begun_on(out, "frames")
    if not fingerprint or fingerprint == newest.fingerprint or not is_published(place, fingerprint):
        return newest
    frames = FrameManifest.load(pinned(place, fingerprint))
    if not frames.num_missing:
        return newest
    logger.info(
        "%s holds %d clips by now; this training goes on with the %d that it began with, another --out takes all",
        place,
        newest.num_clips(),
        frames.num_clips(),
    )
    return frames


def load_codes(out: str, place: str, frames: FrameManifest) -> CodesManifest:
    """The codes that go with these frames.

    Args:
        out: of the training.
        place: folder of the codes of one tokenizer.
        frames: what `load_frames` chose.

    Raises:
        ShardError: there are none.
    """
    fingerprint = _begun_on(out, "codes")
    if frames.fingerprint == _begun_on(out, "frames") and fingerprint and is_published(place, fingerprint):
        return CodesManifest.load(pinned(place, fingerprint))
    return CodesManifest.load(place)


def _begun_on(out: str, name: str) -> str:
    """Fingerprint of an input of the unfinished training at `out`; '' where there is none."""
    begun = published(out, CONFIG) if out else None
    if not begun or published(out, SUMMARY):
        return ""
    return str((begun.get("inputs") or {}).get(name, ""))
