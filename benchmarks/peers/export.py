"""Export the clips of frame shards with their codes as tars for WebDataset, so that every reader gets the same bytes.

A clip is `<number>.f0.jpg ... .f3.jpg`, `.txt` (caption) and `.codes` (uint16, little-endian, of view 0 on).
"""

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evilm.shards import CodesManifest, FrameManifest, pair, read_group


def write_tars(frames: str, codes: str, split: str, folder: Path, clips_per_tar: int = 1000) -> int:
    """Export a split.

    Args:
        frames: folder of frame shards.
        codes: folder of one tokenizer's codes of these frames.
        split: split to export.
        folder: folder for `00000.tar`, `00001.tar`, ...
        clips_per_tar: clips per tar; use the shards' number for equal conditions.

    Returns:
        Number of clips written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips, total = _clips(frames, codes, split), 0
    while some := list(itertools.islice(clips, clips_per_tar)):
        with tarfile.open(folder / f"{total // clips_per_tar:05d}.tar", "w") as tar:
            for number, members in enumerate(some, start=total):
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{number:09d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        total += len(some)
    return total


def _clips(frames: str, codes: str, split: str) -> Iterator[dict[str, bytes]]:
    for item in pair(FrameManifest.load(frames), CodesManifest.load(codes), split):
        for group in range(len(item.row_groups)):
            clips = read_group(item.frames_uri, group, ["caption", "frames"]).to_pylist()
            coded = read_group(item.codes_uri, group, ["code_ids"])["code_ids"].to_pylist()
            for clip, code_ids in zip(clips, coded, strict=True):
                jpegs = {f"f{place}.jpg": jpeg for place, jpeg in enumerate(clip["frames"])}
                yield jpegs | {"txt": clip["caption"].encode(), "codes": np.array(code_ids, "<u2").tobytes()}
