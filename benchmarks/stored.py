"""Write frame shards and codes for benchmarks without videos: grainy textures with JPEGs as large as real ones."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from evilm import shards
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from evilm.video.resize import to_jpeg

_WORDS = (
    *("a red star", "two birds", "the old man", "a blue car", "moves", "waits", "turns to the left", "on the beach"),
    *("at night", "slowly", "behind a tree", "in the rain", "and smiles", "with a dog", "close up", "from above"),
)
_EMPTY: dict[pa.DataType, Any] = {pa.string(): "", pa.int32(): 0, pa.int64(): 0, pa.int16(): 0, pa.float64(): 0.0}


def store_frames(
    folder: Path,
    num_clips: int,
    frame_px: int = 256,
    num_frames: int = 4,
    shard_clips: int = 256,
    group_clips: int = 64,
) -> shards.FrameManifest:
    """Write shards of a train split and their manifest; a few hundred different JPEGs, each in several clips."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    jpegs = [to_jpeg(_picture(frame_px, rng), 90) for _ in range(min(400, num_clips * num_frames))]
    rows = [_row(number, num_frames, jpegs, rng) for number in range(num_clips)]
    infos = [
        _write(folder, f"train-{start // shard_clips:05d}", rows[start : start + shard_clips], group_clips)
        for start in range(0, num_clips, shard_clips)
    ]
    manifest = shards.FrameManifest(
        uri=str(folder), plan_id="benchmark", num_frames=num_frames, frame_px=frame_px, shards=infos, sampling={},
        num_rows=num_clips, reasons={},
    )  # fmt: skip
    manifest.save()
    return manifest


def store_codes(
    folder: Path, frames: shards.FrameManifest, grid: int = 8, num_codes: int = 9420
) -> shards.CodesManifest:
    """Write random codes of whole frames, which is enough for reading."""
    rng = np.random.default_rng(1)
    count = frames.num_frames * grid**2
    schema = shards.codes_schema(count)
    view = {"x": 0, "y": 0, "width": frames.frame_px, "height": frames.frame_px, "flip": False}
    infos, first = [], 0
    for shard in frames.shards:
        tables = []
        for size in shard.row_groups:
            ids = rng.integers(0, num_codes, size * count).astype(np.uint16)
            columns = {
                "clip_id": [f"clip{first + row:07d}" for row in range(size)],
                "row": pa.array(np.arange(size, dtype=np.int32)),
                "views": pa.array([[view]] * size, schema.field("views").type),
                "code_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids), count),
            }
            tables.append(pa.table(columns, schema))
            first += size
        data = shards.write_codes(tables, count, {})
        digest = hashlib.sha256(data).hexdigest()
        name = f"{shard.file.rpartition('-')[0]}-{digest[:12]}.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        infos.append(
            shards.CodeShardInfo(
                name, shard.split, shard.num_clips, len(data), digest, shard.row_groups, shard.file, shard.sha256
            )
        )
    codes = shards.CodesManifest(
        uri=str(folder), tokenizer="none", frames=frames.fingerprint, num_codes=num_codes, num_frames=frames.num_frames,
        grid=grid, shards=infos, histograms={},
    )  # fmt: skip
    codes.save()
    return codes


def vocab(size: int = 400) -> Vocab:
    """Build a vocabulary of the captions."""
    return Vocab(train_wordpiece([" ".join(_WORDS)], size, 1))


def _picture(px: int, rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((px, px), Image.Resampling.BICUBIC)).astype(np.float32)
    for _ in range(12):
        x, y, side = *rng.integers(0, px - 8, 2), rng.integers(8, px // 3)
        image[y : y + side, x : x + side] = image[y : y + side, x : x + side] * 0.5 + rng.integers(0, 128, 3)
    return np.clip(image + rng.normal(0, 7, (px, px, 1)), 0, 255).astype(np.uint8)


def _row(number: int, num_frames: int, jpegs: list[bytes], rng: np.random.Generator) -> dict[str, Any]:
    values = {field.name: None if field.nullable else _EMPTY.get(field.type, []) for field in shards.FRAMES_SCHEMA}
    picked = rng.integers(0, len(jpegs), num_frames)
    caption = " ".join(rng.choice(_WORDS, 4))
    texts = {"clip_id": f"clip{number:07d}", "split": "train", "captions": [caption]}
    return values | texts | {"frames": [jpegs[index] for index in picked]}


def _write(folder: Path, unit: str, rows: list[dict[str, Any]], group_clips: int) -> shards.ShardInfo:
    sink = io.BytesIO()
    groups = [rows[start : start + group_clips] for start in range(0, len(rows), group_clips)]
    with pq.ParquetWriter(
        sink, shards.FRAMES_SCHEMA, compression="none", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema=shards.FRAMES_SCHEMA))
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    name = f"{unit}-{digest[:12]}.parquet"
    (folder / name).write_bytes(data)
    return shards.ShardInfo(name, "train", len(rows), len(data), digest, [len(group) for group in groups])
