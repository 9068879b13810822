"""Compare the encoding rate of `precompute_codes` with a bare forward pass of the same tokenizer on decoded frames.

    python benchmarks/codes.py --json codes.json
    python benchmarks/codes.py --views 4          # the whole frame and three crops of each clip
    python benchmarks/codes.py --encoder base     # the paper's size; about 5 s per clip and core

`command` is the unchanged `precompute_codes` with one worker of one thread: Ray Data, hashing of the shards, Parquet,
JPEG decoding, codes, commits. Its rate is measured between the first and the last commit; the time before and after
(actor, torch, weights, manifest) is reported separately. `bare forward` runs encoder and nearest-code search from
memory, 64 clips at a time; `bare, decoded first` also decodes the JPEGs, in the same thread. `encode` is the method
used by the command: the same in groups of 16 frames, which makes codes independent of the batch and uses caches better.
All use one torch thread; the command decodes in a second one, which its CPU seconds include. With several views, the
bare passes encode each clip as many times, and `bare, decoded first` crops like the command.

`decode stage` is the layout that the command does not have: Ray Data tasks decode and crop row groups, and pass their
pixels through the object store to an actor that encodes them. It writes nothing and keeps no order, and its rate is
measured between the first and the last batch of codes.
"""

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
import numpy as np
import psutil
import torch
from harness import Bench, Sample, count, flags
from stored import store_frames

from evilm.cluster import connect
from evilm.config.models import VideoTokenizerConfig
from evilm.config.stages import PrecomputeCodes
from evilm.config.training import CropConfig
from evilm.dataloader.clip_reader import load_clips
from evilm.encode.encode_job import precompute_codes
from evilm.io import storage
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.shards import FrameManifest, ShardPair
from evilm.video.crops import View, draw_view, replay

_SIZES = {"tiny": (96, 3, 3, 96), "small": (384, 6, 6, 256), "base": (768, 12, 12, 256)}
"""Width, layers, heads and frame side of each size."""
_TOGETHER = 64


def main() -> None:
    """Create shards and tokenizer, run the variants, print the result."""
    parser = flags(__doc__ or "")
    parser.add_argument("--encoder", choices=sorted(_SIZES), default="small", help="size of the tokenizer's encoder")
    parser.add_argument("--views", type=count, default=1, help="views encoded per clip (1)")
    parser.add_argument("--clips", type=int, default=0, help="number of clips (tiny 8192, small 256, base 64)")
    chosen = parser.parse_args()
    clips = 64 if chosen.quick else chosen.clips or {"tiny": 8192, "small": 256, "base": 64}[chosen.encoder]
    torch.set_num_threads(1)
    title = (
        f"codes: {clips} clips of 4 frames, views: {chosen.views}, {chosen.encoder} encoder, one worker of one thread"
    )
    bench = Bench(title, 1 if chosen.quick else chosen.rounds, unit="clips")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = make_tokenizer(chosen.encoder, folder / "tokenizer")
        frames = store_frames(folder / "frames", clips, tokenizer.config.input_px, shard_clips=max(8, clips // 8))
        connect(min_cpus=2)
        around: list[float] = []
        bench.add("command", stage(frames, folder, chosen.views, around))
        bench.add("decode stage", separate_stages(frames, folder / "tokenizer", chosen.views))
        bench.add("bare forward", bare(frames, tokenizer, forward, decode=False, views=chosen.views))
        bench.add("bare, decoded first", bare(frames, tokenizer, forward, decode=True, views=chosen.views))
        bench.add("encode", bare(frames, tokenizer, VideoTokenizer.encode, decode=False, views=chosen.views))
        bench.run()
    bench.notes["seconds of the command around that"] = round(median(around), 1)
    for other in ("bare forward", "bare, decoded first", "encode"):
        bench.ratio("command", other)
        bench.ratio("command", other, "cpu")
    bench.ratio("decode stage", "bare forward")
    bench.ratio("command", "decode stage")
    bench.print()
    bench.save(chosen.json)


def make_tokenizer(size: str, folder: Path) -> VideoTokenizer:
    """Create a tokenizer with random weights and the paper's codebook."""
    width, layers, heads, px = _SIZES[size]
    encoder = {"input_px": px, "encoder_dim": width, "encoder_layers": layers, "encoder_heads": heads}
    decoder = {"decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2, "vocab_size": 16}
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(VideoTokenizerConfig().override(encoder | decoder)).eval()
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def stage(frames: FrameManifest, folder: Path, views: int, around: list[float]) -> Callable[[], Sample]:
    """Build a run of the whole command, timed from first to last commit; the other seconds are added to `around`."""
    places = {"frames": frames.uri, "tokenizer": str(folder / "tokenizer")}
    config = PrecomputeCodes(**places, batch_clips=_TOGETHER, views=views)

    def run() -> Sample:
        out, began = folder / "codes", time.perf_counter()
        with Watch() as watch:
            summary = precompute_codes(config.model_copy(update={"out": str(out)}))
        spent = time.perf_counter() - began
        commits = sorted(Path(summary["codes"]).glob("commits/*.json"), key=lambda path: path.stat().st_mtime_ns)
        first, last = (path.stat().st_mtime_ns / 1e9 for path in (commits[0], commits[-1]))
        clips = {shard.file.rpartition("-")[0]: shard.num_clips for shard in frames.shards}
        storage.delete(str(out))
        around.append(spent - (last - first))
        done = sum(clips.values()) - clips[commits[0].stem.partition(".")[0]]
        return Sample(done, cpu_s=watch.cpu_s(last) - watch.cpu_s(first), wall_s=last - first)

    return run


class Encoder:
    """The actor of `decode stage`."""

    def __init__(self, tokenizer: Path) -> None:
        torch.set_num_threads(1)
        self._tokenizer = VideoTokenizer.from_pretrained(str(tokenizer))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Encode the views of some clips, a view at a time."""
        for view in range(batch["frames"].shape[1]):
            self._tokenizer.encode(torch.from_numpy(np.ascontiguousarray(batch["frames"][:, view])))
        return {"clips": [len(batch["frames"])], "ended": [time.time()]}


def separate_stages(frames: FrameManifest, tokenizer: Path, views: int) -> Callable[[], Sample]:
    """Build a run of decoding tasks before an encoding actor, timed from its first to its last batch."""
    import ray.data

    crops = _crops(frames.frame_px, views)
    groups = [(item, group) for item in _items(frames) for group in range(len(item.row_groups))]
    px, num_frames = frames.frame_px, frames.num_frames
    together = max(1, min(_TOGETHER, frames.num_clips() // 8))  # several batches, since the first is not measured

    def decode(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        clips = load_clips(*groups[int(batch["id"][0])])
        pixels = np.empty((len(clips.clip_ids), views, num_frames, px, px, 3), np.uint8)
        for row, (whole, *others) in enumerate(pixels):
            clips.decode(row, range(num_frames), whole)
            for crop, out in zip(crops, others, strict=True):
                replay(whole, crop, out)
        return {"frames": pixels}

    def run() -> Sample:
        pixels = ray.data.range(len(groups), override_num_blocks=len(groups)).map_batches(decode, batch_size=1)
        codes = pixels.map_batches(
            Encoder,
            fn_constructor_args=(tokenizer,),
            batch_size=together,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
        rows = sorted(codes.take_all(), key=lambda row: row["ended"])
        done = sum(row["clips"] for row in rows[1:])
        # Ray ends the tasks on its own terms, so their CPU seconds are not known.
        return Sample(done, cpu_s=math.nan, wall_s=rows[-1]["ended"] - rows[0]["ended"])

    return run


class Watch(threading.Thread):
    """Records the CPU seconds of Ray's actor over time, from outside."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._points: list[tuple[float, float]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample ten times a second."""
        while not self._ended.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has ended
                    if process.name().startswith("ray::MapWorker"):
                        self._points.append((time.time(), sum(process.cpu_times()[:2])))

    def cpu_s(self, when: float) -> float:
        """Return the CPU seconds used by a given time."""
        return float(np.interp(when, *zip(*self._points, strict=True)))

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def forward(tokenizer: VideoTokenizer, frames: torch.Tensor) -> torch.Tensor:
    """Run encoder and nearest-code search in the most direct way."""
    return tokenizer.quantizer.nearest(tokenizer.vectors(frames).flatten(0, 1))


def bare(
    frames: FrameManifest, tokenizer: VideoTokenizer, encode: Callable[..., torch.Tensor], decode: bool, views: int
) -> Callable[[], Sample]:
    """Build a run that encodes frames in memory, each clip once per view; `decode` includes decoding and cropping."""
    groups = [load_clips(item, group) for item in _items(frames) for group in range(len(item.row_groups))]
    rows = [(clips, row) for clips in groups for row in range(len(clips.clip_ids))]
    px, crops = frames.frame_px, _crops(frames.frame_px, views)
    pixels = np.empty((len(rows), frames.num_frames, px, px, 3), np.uint8)
    cropped = np.empty((_TOGETHER, *pixels.shape[1:]), np.uint8)

    def fill(start: int) -> None:
        for (clips, row), out in zip(rows[start : start + _TOGETHER], pixels[start:], strict=False):
            clips.decode(row, range(frames.num_frames), out)

    for start in range(0, len(rows), _TOGETHER):
        fill(start)

    @torch.inference_mode()
    def run() -> Sample:
        began = time.process_time()
        for start in range(0, len(rows), _TOGETHER):
            lot = pixels[start : start + _TOGETHER]
            if decode:
                fill(start)
            for view in [None, *crops]:
                if decode and view:
                    for clip, out in zip(lot, cropped, strict=False):
                        replay(clip, view, out)
                used = cropped[: len(lot)] if decode and view else lot
                encode(tokenizer, torch.from_numpy(used)).numpy().astype(np.uint16)
        return Sample(len(rows), cpu_s=time.process_time() - began)

    return run


def _items(frames: FrameManifest) -> list[ShardPair]:
    return [ShardPair(f"{frames.uri}/{s.file}", "", s.num_clips, s.row_groups) for s in frames.shards]


def _crops(px: int, views: int) -> list[View]:
    """Draw the views beside the whole frame; here all clips have the same."""
    rng = np.random.default_rng(0)
    return [draw_view(px, CropConfig(), "", rng) for _ in range(views - 1)]


if __name__ == "__main__":
    main()
