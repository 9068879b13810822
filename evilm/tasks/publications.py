"""Train on shards that are still being written: a training continues on the publication that it began with."""

import logging

from evilm.io.outputs import CONFIG, SUMMARY
from evilm.io.ownership import published
from evilm.shards import CodesManifest, FrameManifest, is_published, pinned

logger = logging.getLogger(__name__)


def load_frames(out: str, place: str) -> FrameManifest:
    """Load the frames of a training: the newest, or those it began with if shards were missing then.

    Raises:
        ShardError: there are no frames.
    """
    newest, fingerprint = FrameManifest.load(place), _begun_on(out, "frames")
    if not fingerprint or fingerprint == newest.fingerprint or not is_published(place, fingerprint):
        return newest
    frames = FrameManifest.load(pinned(place, fingerprint))
    if not frames.num_missing:
        return newest
    logger.info(
        "%s holds %d clips by now; this training continues on the %d it began with; use another --out for all",
        place,
        newest.num_clips(),
        frames.num_clips(),
    )
    return frames


def load_codes(out: str, place: str, frames: FrameManifest) -> CodesManifest:
    """Load the codes of these frames.

    `place` is the folder with the codes of one tokenizer, `out` the output of the training.

    Raises:
        ShardError: there are no codes.
    """
    fingerprint = _begun_on(out, "codes")
    if frames.fingerprint == _begun_on(out, "frames") and fingerprint and is_published(place, fingerprint):
        return CodesManifest.load(pinned(place, fingerprint))
    return CodesManifest.load(place)


def _begun_on(out: str, name: str) -> str:
    """Read the fingerprint of an input of the training at `out`; '' if no training is unfinished there."""
    begun = published(out, CONFIG) if out else None
    if not begun or published(out, SUMMARY):
        return ""
    return str((begun.get("inputs") or {}).get(name, ""))
