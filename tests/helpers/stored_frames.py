"""Frame shards without videos: textured frames that move, written as the sharding command would leave them."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from evilm.config.models import VideoTokenizerConfig
from evilm.io import storage
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.shards import FRAMES_SCHEMA, CodeShardInfo, CodesManifest, FrameManifest, ShardInfo
from evilm.video.resize import to_jpeg

PX, GRID, NUM_CODES = 64, 4, 32
CAPTIONS = ("a red star moves left", "a blue ring spins", "the green cross waits", "two birds", "right or wrong")
SIZES = {"train": [[4, 1], [4, 1], [4, 1], [1]], "val": [[4, 1], [1]]}
"""Row groups of the shards of each split."""
_EMPTY = {pa.string(): "", pa.int32(): 0, pa.int64(): 0, pa.int16(): 0, pa.float64(): 0.0}


def store_frames(
    folder: Path, sizes: dict[str, list[list[int]]] = SIZES, num_frames: int = 4, seed: int = 0
) -> FrameManifest:
    """Shards of clips `<split>000`, `<split>001`, ... in row groups of these sizes, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for split, shards in sizes.items():
        number = 0
        for shard, groups in enumerate(shards):
            tables = []
            for size in groups:
                first = sum(table.num_rows for table in tables)
                rows = [_row(split, number + k, num_frames, seed) | {"row": first + k} for k in range(size)]
                tables.append(pa.Table.from_pylist(rows, schema=FRAMES_SCHEMA))
                number += size
            infos.append(_write(folder, f"{split}-{shard:05d}", split, tables))
    counts = sum(info.num_clips for info in infos)
    manifest = FrameManifest(
        uri=str(folder), plan_id="p", num_frames=num_frames, frame_px=PX, shards=infos, sampling={}, num_rows=counts,
        reasons={},
    )  # fmt: skip
    manifest.save()
    return manifest


def stand_in_codes(root: Path, frames: FrameManifest, tokenizer: str = "tok") -> CodesManifest:
    """A manifest of codes for these shards, four codes on grids of 2 x 2, whose files hold nothing."""
    uri, infos = f"{root}/{tokenizer}", []
    for shard in frames.shards:
        data = b"stand-in"
        storage.write_bytes(f"{uri}/{shard.file}", data)
        sizes = (shard.num_clips, len(data), "00", shard.row_groups)
        infos.append(CodeShardInfo(shard.file, shard.split, *sizes, shard.file, shard.sha256))
    codes = CodesManifest(uri, tokenizer, frames.fingerprint, 4, frames.num_frames, 2, infos, {"train": [3, 0, 1, 0]})
    codes.save()
    return codes


def make_tokenizer(folder: Path, frames: FrameManifest, seed: int = 0) -> VideoTokenizer:
    """A tokenizer whose codes lie where the frames' regions do, near ties and all."""
    settings = {"input_px": PX, "patch_px": PX // GRID, "encoder_dim": 32, "encoder_layers": 1, "encoder_heads": 2}
    settings |= {"decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2, "vocab_size": 16}
    torch.manual_seed(seed)
    config = VideoTokenizerConfig().override(settings | {"codebook.num_codes": NUM_CODES, "codebook.code_dim": 8})
    tokenizer = VideoTokenizer(config).eval()
    pixels = np.stack([picture(f"train{n}", frame) for n in range(8) for frame in range(2)])
    with torch.no_grad():
        tokenizer.quantizer.init_kmeans(tokenizer.vectors(torch.from_numpy(pixels)[:, None]).flatten(0, 1), seed)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def picture(name: str, frame: int) -> np.ndarray:
    """One frame: a smooth texture that drifts, with boxes on it; no two regions alike, no symmetry."""
    rng = np.random.default_rng(list(name.encode()))
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((PX, PX), Image.Resampling.BICUBIC)).copy()
    for _ in range(4):
        x, y, side = *rng.integers(0, PX - 20, 2), rng.integers(6, 20)
        image[y : y + side, x : x + side] = rng.integers(0, 256, 3)
    return np.roll(image, 3 * frame, axis=1)


def frame_row(**values: Any) -> dict[str, Any]:
    """Return a row of a frame shard with these values, and empty ones in all other columns."""
    empty = {field.name: None if field.nullable else _EMPTY.get(field.type, []) for field in FRAMES_SCHEMA}
    return empty | values | {"caption": values["captions"][0]}


def _row(split: str, number: int, num_frames: int, seed: int) -> dict[str, object]:
    jpegs = [to_jpeg(picture(f"{split}{number}{seed or ''}", frame), 90) for frame in range(num_frames)]
    caption = CAPTIONS[number % len(CAPTIONS)]
    return frame_row(clip_id=f"{split}{number:03d}", split=split, captions=[caption], frames=jpegs)


def _write(folder: Path, unit: str, split: str, tables: Sequence[pa.Table]) -> ShardInfo:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, FRAMES_SCHEMA, compression="none", write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table)
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    name = f"{unit}-{digest[:12]}.parquet"
    (folder / name).write_bytes(data)
    groups = [table.num_rows for table in tables]
    return ShardInfo(name, split, sum(groups), len(data), digest, groups)
