"""A small pre-trained model with its frames and codes, as the other commands leave them."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg
import torch

from evilm import shards
from evilm.config.training import ObjectivesConfig
from evilm.io import storage
from evilm.model.evilm_model import EViLMModel
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from helpers.small_models import student_config

PX, FRAMES, NUM_CODES, GROUP = 64, 2, 20, 4
REGIONS = FRAMES * (PX // 32) ** 2
COLOURS = ("red", "green", "blue", "white", "black", "pink")
SHAPES = ("ball", "cube", "ring", "star")


def captions(num_clips: int) -> list[str]:
    """A caption per clip; the 25th repeats the first."""
    return [f"a {COLOURS[n % 6]} {SHAPES[n // 6 % 4]} moves" + " slowly" * (n % 3) for n in range(num_clips)]


def make_model(uri: Path, **changes: object) -> EViLMModel:
    """A student with random weights, its vocabulary and its objectives."""
    vocab = Vocab(train_wordpiece(captions(24), 100))
    torch.manual_seed(0)
    text = {"vocab_size": vocab.size, "max_text_len": 12, "text_layers": 1, "text_positions": 16}
    config = student_config(**{"num_frames": FRAMES, "num_codes": NUM_CODES, **text, **changes})
    student = EViLMModel(config).eval()
    student.save_pretrained(str(uri))
    vocab.save(str(uri / "vocab"))
    objectives = ObjectivesConfig.model_validate({"mask_ratio": 0.5}).model_dump() | {"tokenizer": "t0"}
    storage.write_json(str(uri / "pretrain.json"), objectives)
    return student


def make_frames(uri: Path, num_clips: int = 26, split: str = "test", flag: bool = True) -> shards.FrameManifest:
    """Frame shards of noise in two files."""
    rng = np.random.default_rng(0)
    rows = [_row(n, caption, split, rng, flag) for n, caption in enumerate(captions(num_clips))]
    infos = []
    for number, part in enumerate((rows[: num_clips // 2], rows[num_clips // 2 :])):
        groups = [part[start : start + GROUP] for start in range(0, len(part), GROUP)]
        data = shards.write_frames(groups, {"shard": str(number)})
        storage.write_bytes(str(uri / f"{number}.parquet"), data)
        infos.append(_info(f"{number}.parquet", split, len(part), data, [len(group) for group in groups]))
    manifest = shards.FrameManifest(str(uri), "plan", FRAMES, PX, infos, {}, num_clips, {})
    manifest.save()
    return manifest


def named_frames(uri: Path, clip_ids: list[str], split: str = "test") -> shards.FrameManifest:
    """One frame shard of clips with these ids and one frame, the same of all, cut from a video each."""
    jpeg = simplejpeg.encode_jpeg(np.zeros((PX, PX, 3), np.uint8))
    first = _row(0, "a clip", split, np.random.default_rng(0), False) | {"frames": [jpeg] * FRAMES}
    rows = [first | {"clip_id": clip, "row": n, "source_hash": clip} for n, clip in enumerate(clip_ids)]
    data = shards.write_frames([rows], {"shard": "0"})
    storage.write_bytes(str(uri / "0.parquet"), data)
    info = _info("0.parquet", split, len(rows), data, [len(rows)])
    manifest = shards.FrameManifest(str(uri), "plan", FRAMES, PX, [info], {}, len(rows), {})
    manifest.save()
    return manifest


def make_codes(uri: Path, frames: shards.FrameManifest) -> np.ndarray:
    """Random codes, code 7 most often; returned as (clip, region) in the order of the clips."""
    rng = np.random.default_rng(1)
    every, infos = [], []
    for shard in frames.shards:
        tables = []
        for group, size in enumerate(shard.row_groups):
            ids = np.where(rng.random((size, REGIONS)) < 0.3, 7, rng.integers(0, NUM_CODES, (size, REGIONS)))
            clip_ids = shards.read_group(storage.join(frames.uri, shard.file), group, ["clip_id"])["clip_id"]
            view = {"x": 0, "y": 0, "width": PX, "height": PX, "flip": False}
            schema = shards.codes_schema(REGIONS)
            columns = [
                clip_ids.combine_chunks(),
                pa.array(range(size), pa.int32()),
                pa.array([[view]] * size, schema.field("views").type),
            ]
            columns.append(pa.array(list(ids.astype(np.uint16)), schema.field("code_ids").type))
            tables.append(pa.Table.from_arrays(columns, schema=schema))
            every.append(ids)
        data = shards.write_codes(tables, REGIONS, {})
        storage.write_bytes(str(uri / "t0" / shard.file), data)
        info = _info(shard.file, shard.split, shard.num_clips, data, shard.row_groups)
        infos.append(shards.CodeShardInfo(**vars(info), frames_file=shard.file, frames_sha256=shard.sha256))
    ids = np.concatenate(every)
    histograms = {"train": np.bincount([3, 3, 7], minlength=NUM_CODES).tolist()}
    shards.CodesManifest(
        str(uri / "t0"), "t0", frames.fingerprint, NUM_CODES, FRAMES, PX // 32, infos, histograms
    ).save()
    return ids


def _row(n: int, caption: str, split: str, rng: np.random.Generator, flag: bool) -> dict[str, object]:
    jpegs = [simplejpeg.encode_jpeg(rng.integers(0, 256, (PX, PX, 3), dtype=np.uint8)) for _ in range(FRAMES)]
    extra = {"heldout": "true" if n % 2 else "false"} if flag else {}
    return {
        "clip_id": f"c{n:03d}", "row": n, "split": split, "captions": [caption], "frames": jpegs,
        "frame_pts_us": list(range(FRAMES)), "frame_index": list(range(FRAMES)), "duration_s": 1.0, "fps": 12.0,
        "width": PX, "height": PX, "rotation": 0, "codec": "h264", "source_uri": f"{n}.mp4", "source_bytes": 1,
        "source_hash": "0", "crop_box": [0, 0, PX, PX], "decoder": "pyav", "flags": 0, "extra": extra,
    }  # fmt: skip


def _info(file: str, split: str, clips: int, data: bytes, groups: list[int]) -> shards.ShardInfo:
    return shards.ShardInfo(file, split, clips, len(data), hashlib.sha256(data).hexdigest(), groups)
