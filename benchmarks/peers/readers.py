"""Time the readers of WebDataset and mosaicml-streaming on the same clips; runs in a separate environment.

    python3.11 -m venv peer
    peer/bin/pip install webdataset mosaicml-streaming simplejpeg psutil
    peer/bin/python benchmarks/peers/readers.py tars/ --reader webdataset --workers 2

mosaicml-streaming 0.13 can't be installed in our environment (its bounds exclude ours); webdataset 1.0.2 could. `tars/`
is the output of `export.write_tars`. Each reader yields shuffled batches as for training: frames uint8 (clip, frame,
row, col, 3), decoded by simplejpeg like ours, code_ids int64, captions. One pass starts the workers, then `--passes`
are timed. Prints one JSON object: clips, wall and CPU seconds of reader and workers.
"""

import argparse
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch.utils.data import DataLoader

sys.path.append(str(Path(__file__).parents[1]))
from harness import Sample, measure

_PACKAGES = {"webdataset": "webdataset", "streaming": "mosaicml-streaming"}


def main() -> None:
    """Create the reader, run it, print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", type=Path)
    parser.add_argument("--reader", choices=sorted(_PACKAGES), required=True)
    parser.add_argument("--batch-clips", type=int, default=32)
    parser.add_argument("--num-frames", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="worker processes; 0 reads in the main process")
    parser.add_argument("--passes", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.reader == "webdataset":
            dataset = _webdataset(chosen.tars, chosen.num_frames)
        else:
            dataset = _streaming(chosen.tars, scratch, chosen.batch_clips, chosen.num_frames)
        loader = DataLoader(
            dataset,
            batch_size=chosen.batch_clips,
            num_workers=chosen.workers,
            persistent_workers=chosen.workers > 0,
            collate_fn=_collate,
        )
        _count(loader)
        sample = measure(lambda: Sample(sum(_count(loader) for _ in range(chosen.passes))))
    version = metadata.version(_PACKAGES[chosen.reader])
    result = {"version": version, "clips": sample.items, "wall_s": sample.wall_s, "cpu_s": sample.cpu_s}
    print(json.dumps({chosen.reader: result}))
    sys.stdout.flush()
    os._exit(0)  # streaming's clean-up of shared memory fails if another of its processes is running


def _webdataset(tars: Path, num_frames: int) -> Any:
    import webdataset as wds

    urls = sorted(map(str, tars.glob("*.tar")))
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
    return dataset.shuffle(1000).map(partial(_decode, num_frames=num_frames))


def _streaming(tars: Path, scratch: str, batch_clips: int, num_frames: int) -> Any:
    """Write the same clips as MDS shards to `scratch`, untimed, and open them."""
    import streaming

    columns = {f"f{place}.jpg": "bytes" for place in range(num_frames)} | {"txt": "bytes", "codes": "bytes"}
    streaming.base.util.clean_stale_shared_memory()
    with streaming.MDSWriter(out=scratch, columns=columns) as writer:
        for path in sorted(tars.glob("*.tar")):
            for clip in _members(path):
                writer.write(clip)

    class Clips(streaming.StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            return _decode(super().__getitem__(at), num_frames)

    return Clips(local=scratch, shuffle=True, batch_size=batch_clips)


def _members(path: Path) -> Iterable[dict[str, bytes]]:
    """Yield the clips of a tar, each as its files by ending."""
    clips: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            clips.setdefault(key, {})[ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return clips.values()


def _decode(clip: Mapping[str, bytes], num_frames: int) -> tuple[np.ndarray, np.ndarray, str]:
    exact = {"colorspace": "RGB", "fastdct": False, "fastupsample": False}
    frames = np.stack([simplejpeg.decode_jpeg(clip[f"f{place}.jpg"], **exact) for place in range(num_frames)])
    return frames, np.frombuffer(clip["codes"], "<u2").astype(np.int64), clip["txt"].decode()


def _collate(clips: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    frames, codes, captions = zip(*clips, strict=True)
    return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(codes)), list(captions)


def _count(loader: Iterable[Any]) -> int:
    return sum(len(captions) for _, _, captions in loader)


if __name__ == "__main__":
    main()
