"""Measure how often approximate codes of augmented views equal the exact ones, by crop size.

    make demo && python benchmarks/views.py --root runs/demo --json views.json

Exact codes are computed on the cropped frames, as stored by `precompute_codes --views`. Approximate ones are the whole
frame's codes at the nearest cells, as used by `pretrain --augment.approximate`. `by chance` is how often two regions of
whole frames have the same code; `cells` is the share of distinct cells used by an approximate view.
"""

import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import torch
from harness import count, flags, machine

from evilm.config.training import CropConfig
from evilm.dataloader.clip_reader import ClipAugmentation, load_clips, show
from evilm.dataloader.sampler import EVAL_EPOCH
from evilm.io import storage
from evilm.io.text_table import text_table
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.seeds import clip_rng
from evilm.shards import FrameManifest, ShardPair
from evilm.video.crops import draw_view, nearest_cells, replay

_CROPS = (
    ("mirrored only", {"min_scale": 1.0, "max_ratio": 1.0, "flip_ratio": 1.0}),
    *((f"{scale:g} .. 1 of the area", {"min_scale": scale, "flip_ratio": 0.0}) for scale in (0.9, 0.7, 0.5, 0.3, 0.1)),
    ("0.5 .. 1, half mirrored", {"min_scale": 0.5, "flip_ratio": 0.5}),
)


def main() -> None:
    """Encode clips both ways and print the table."""
    parser = flags(__doc__ or "")
    parser.add_argument("--root", default="runs/demo", help="folder of a finished workflow with frames and tokenizer")
    parser.add_argument("--split", default="val", help="split of the clips (val)")
    parser.add_argument("--clips", type=count, default=160, help="number of clips (160)")
    chosen = parser.parse_args()
    frames = FrameManifest.load(storage.join(chosen.root, "frames"))
    tokenizer = VideoTokenizer.from_pretrained(storage.join(chosen.root, "tokenizer"))
    names, pixels = read(frames, chosen.split, 16 if chosen.quick else chosen.clips)
    whole = encode(tokenizer, pixels)
    results = [compare(name, CropConfig.model_validate(crop), names, pixels, whole, tokenizer) for name, crop in _CROPS]
    share = np.bincount(whole.ravel()) / whole.size
    chance = float((share**2).sum())
    print(f"\napproximate codes, {len(names)} clips, {tokenizer.config.grid} x {tokenizer.config.grid} cells a frame")
    rows = [[r["crops"], f"{r['agreement']:.1%}", f"{r['cells']:.1%}"] for r in results]
    print(text_table(["crops", "exact", "cells"], rows, right=[1, 2]))
    print(f"by chance: {chance:.1%}")
    if chosen.json:
        content = {"results": results, "by_chance": chance, "clips": len(names), "machine": machine()}
        Path(chosen.json).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read(frames: FrameManifest, split: str, num_clips: int) -> tuple[list[str], np.ndarray]:
    """Read ids and whole frames (clip, frame, row, col, 3) of the first clips."""
    pairs = [ShardPair(f"{frames.uri}/{s.file}", "", s.num_clips, s.row_groups) for s in frames.of_split(split)]
    groups = [load_clips(item, group) for item in pairs for group in range(len(item.row_groups))]
    rows = [(clips, row) for clips in groups for row in range(len(clips.clip_ids))][:num_clips]
    return [clips.clip_ids[row] for clips, row in rows], show(ClipAugmentation(), rows, EVAL_EPOCH)[0]


def encode(tokenizer: VideoTokenizer, pixels: np.ndarray) -> np.ndarray:
    """Encode frames to codes (clip, frame, cell)."""
    return tokenizer.encode(torch.from_numpy(pixels)).numpy().reshape(*pixels.shape[:2], -1)


def compare(
    title: str, crop: CropConfig, names: list[str], pixels: np.ndarray, whole: np.ndarray, tokenizer: VideoTokenizer
) -> dict[str, Any]:
    """Encode a random view of every clip both ways; captions do not matter here."""
    side, grid = pixels.shape[2], tokenizer.config.grid
    views = [draw_view(side, crop, "", clip_rng("benchmark", 0, 0, name)) for name in names]
    exact = encode(tokenizer, np.stack([replay(frames, view) for frames, view in zip(pixels, views, strict=True)]))
    cells = [nearest_cells(view, side, grid) for view in views]
    approximate = np.stack([codes[:, places] for codes, places in zip(whole, cells, strict=True)])
    different = float(np.mean([len(set(places.tolist())) / grid**2 for places in cells]))
    return {"crops": title, "agreement": float((exact == approximate).mean()), "cells": different}


if __name__ == "__main__":
    main()
