"""Verify stored codes: encode random clips again, from the pixels that training would see."""

from typing import NamedTuple

import numpy as np
import torch

from evilm.dataloader.clip_reader import ClipAugmentation, load_clips
from evilm.dataloader.sampler import EVAL_EPOCH
from evilm.errors import ShardError
from evilm.model.tokenizers.base_tokenizer import BaseVideoTokenizer
from evilm.shards import CodesManifest, FrameManifest, pair
from evilm.video.crops import replay, resampler, resampler_version


class Agreement(NamedTuple):
    """Agreement of stored codes with codes computed again."""

    num_clips: int
    num_regions: int
    agreement: float
    """Share of regions that get the stored code."""


def audit_codes(
    frames: FrameManifest,
    codes: CodesManifest,
    tokenizer: BaseVideoTokenizer,
    num_clips: int,
    seed: int = 0,
    split: str = "",
) -> Agreement:
    """Encode random clips again, each in a random one of its views, and compare with the stored codes.

    The agreement is exactly 1 on the kind of processor that computed the codes; on others, near ties may differ.

    Args:
        tokenizer: the tokenizer that should have computed them.
        num_clips: most clips to encode.
        split: only clips of this split; '' for all.

    Raises:
        ShardError: codes and frames do not belong together.
    """
    pairs = [item for name in ([split] if split else frames.splits) for item in pair(frames, codes, name)]
    groups = [(item, group) for item in pairs for group in range(len(item.row_groups))]
    ends = np.cumsum([item.row_groups[group] for item, group in groups])
    total = int(ends[-1]) if len(ends) else 0
    rng = np.random.default_rng([seed, total])
    chosen = np.sort(rng.choice(total, min(num_clips, total), replace=False))
    same = regions = 0
    for number in np.unique(np.searchsorted(ends, chosen, side="right")):
        item, group = groups[number]
        clips = load_clips(item, group, views=codes.num_views > 1)
        first = int(ends[number]) - item.row_groups[group]
        for row in (int(index) - first for index in chosen if first <= index < ends[number]):
            view = int(rng.integers(codes.num_views))
            pixels = np.empty((codes.num_frames, frames.frame_px, frames.frame_px, 3), np.uint8)
            ClipAugmentation().show(clips, row, EVAL_EPOCH, pixels)
            if view:
                replay(pixels, clips.view(row, view), pixels)
            found = tokenizer.encode(torch.from_numpy(pixels[None]).to(tokenizer.device)).cpu().numpy()
            stored = clips.codes(row, view, codes.num_views).reshape(-1)
            same, regions = same + int((found[0] == stored).sum()), regions + stored.size
    return Agreement(len(chosen), regions, same / max(1, regions))


def require_agreement(found: Agreement, least: float, codes: CodesManifest) -> None:
    """Check that enough codes agree.

    Raises:
        ShardError: the agreement is below `least`.
    """
    if found.num_regions and found.agreement < least:
        raise ShardError(
            f"{codes.uri}: encoded again here, {found.num_clips} clips got the stored code in only "
            f"{found.agreement:.2%} of {found.num_regions} regions, audit_agreement = {least}; another JPEG decoder, "
            "resampler or kind of processor made them: run pipelines/precompute_codes.py --overwrite"
        )


def require_resampler(codes: CodesManifest) -> None:
    """Check that replayed views have the pixels that were encoded.

    Raises:
        ShardError: the views were cropped by a resampler with other results than the one installed here.
    """
    made = codes.view_spec.get("resampler", resampler())
    if made != resampler():
        raise ShardError(
            f"{codes.uri} was made from views resampled by {made}, here {resampler_version()} gives {resampler()}; "
            "install that Pillow, or compute the codes again with pipelines/precompute_codes.py --overwrite"
        )
