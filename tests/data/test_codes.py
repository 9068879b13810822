"""Coding from end to end: codes are those of the tokenizer, aligned with their frames, equal bytes every time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doors import files_of, kill, start, wait_for
from video_files import write_video

from evilm.config.model import VideoTokenizerConfig
from evilm.config.runs import PrecomputeCodes, ShardVideos
from evilm.data.codes import precompute_codes
from evilm.data.shard import shard_videos
from evilm.errors import CheckpointError, ConfigError, ShardError
from evilm.model.tokenizer import VideoTokenizer
from evilm.shards import CodesManifest, FrameManifest, decode_frames, find_codes, pair, read_group

NUM_CODES = 32
BATCH_CLIPS = 3


def make_tokenizer(folder: Path, seed: int) -> str:
    settings = {"input_px": 64, "patch_px": 16, "encoder_dim": 32, "encoder_layers": 1, "encoder_heads": 2}
    settings |= {"decoder_dim": 32, "decoder_layers": 1, "decoder_heads": 2, "vocab_size": 16}
    torch.manual_seed(seed)
    config = VideoTokenizerConfig().override(settings | {"codebook.num_codes": NUM_CODES})
    VideoTokenizer(config).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "one", 0)


@pytest.fixture(scope="module")
def frames(ray_local: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Frame shards of 22 clips: row groups of 4, at most 5 clips per shard, two splits."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "videos").mkdir()
    lines = ["videoid,name,split"]
    for number in range(22):
        write_video(folder / "videos" / f"{number}.mp4", num_frames=12, first_picture=5 * number)
        lines.append(f"{number},clip {number},{'val' if number % 4 == 0 else 'train'}")
    (folder / "clips.csv").write_text("\n".join(lines))
    config = ShardVideos(manifest=f"{folder}/clips.csv", videos=f"{folder}/videos", out=f"{folder}/frames")
    sizes = {"sampling.frame_px": 64, "sampling.shard_clips": 5, "sampling.row_group_clips": 4}
    return str(shard_videos(config.override(sizes))["out"])


def door(frames: str, tokenizer: str, out: Path, **settings: Any) -> PrecomputeCodes:
    config = PrecomputeCodes(frames=frames, tokenizer=tokenizer, out=str(out), batch_clips=BATCH_CLIPS)
    return config.override(settings)


@pytest.fixture(scope="module")
def unbroken(frames: str, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes made in one go by two actors."""
    out = tmp_path_factory.mktemp("unbroken") / "codes"
    summary = precompute_codes(door(frames, tokenizer, out, **{"cluster.num_workers": 2}))
    assert summary["clips"] == {"train": 16, "val": 6}
    return Path(summary["codes"])


def test_codes_are_the_tokenizers(unbroken: Path, frames: str, tokenizer: str) -> None:
    model = VideoTokenizer.from_pretrained(tokenizer)
    assert unbroken.name == model.fingerprint()
    manifest, codes = FrameManifest.load(frames), CodesManifest.load(str(unbroken))
    counts = {"train": np.zeros(NUM_CODES, int), "val": np.zeros(NUM_CODES, int)}
    for split, seen in counts.items():
        pairs = pair(manifest, codes, split, model.fingerprint(), model.config.grid, 4)
        assert sum(item.num_clips for item in pairs) == manifest.num_clips(split)
        for item in pairs:
            for group in range(len(item.row_groups)):
                source = read_group(item.frames_uri, group, ["clip_id", "row", "frames"])
                coded = read_group(item.codes_uri, group, ["clip_id", "row", "views", "code_ids"])
                assert coded["clip_id"].equals(source["clip_id"])
                assert coded["row"].equals(source["row"])
                view = {"x": 0, "y": 0, "width": 64, "height": 64, "flip": False}
                assert all(views == [view] for views in coded["views"].to_pylist())
                pixels = np.stack([decode_frames(jpegs) for jpegs in source["frames"].to_pylist()])
                wanted = model.encode(torch.from_numpy(pixels)).numpy()
                got = np.array(coded["code_ids"].to_pylist())
                assert (wanted == got).mean() > 0.999  # another batch size may tip a near tie
                seen += np.bincount(got.ravel(), minlength=NUM_CODES)
    assert {split: histogram.tolist() for split, histogram in counts.items()} == codes.histograms
    assert codes.code_usage["train"] == pytest.approx((counts["train"] > 0).mean(), abs=1e-5)


def test_same_bytes_with_another_number_of_workers(unbroken: Path, frames: str, tokenizer: str, tmp_path: Path) -> None:
    summary = precompute_codes(door(frames, tokenizer, tmp_path / "codes"))
    assert files_of(Path(summary["codes"])) == files_of(unbroken)
    assert json.loads((tmp_path / "codes" / "summary.json").read_text()) == summary


def test_two_tokenizers_side_by_side(unbroken: Path, frames: str, tokenizer: str, tmp_path: Path) -> None:
    other = make_tokenizer(tmp_path / "other", 1)
    root = unbroken.parent
    assert precompute_codes(door(frames, tokenizer, root))["reused"]
    fresh = precompute_codes(door(frames, other, root))
    assert fresh["inputs"]["tokenizer"] != unbroken.name
    assert find_codes(str(root), unbroken.name) == str(unbroken)
    with pytest.raises(
        ShardError, match=f"holds codes of tokenizer {Path(fresh['codes']).name}, not of {unbroken.name}"
    ):
        pair(FrameManifest.load(frames), CodesManifest.load(fresh["codes"]), "train", unbroken.name)


def test_damaged_frames_are_refused(frames: str, tokenizer: str, tmp_path: Path) -> None:
    shard = FrameManifest.load(frames).shards[0]
    path = Path(frames) / shard.file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    try:
        with pytest.raises(ShardError, match=f"{shard.file} was changed after it was written"):
            precompute_codes(door(frames, tokenizer, tmp_path / "codes"))
    finally:
        path.write_bytes(whole)
    assert not list((tmp_path / "codes").glob("*/manifest.json"))
    assert precompute_codes(door(frames, tokenizer, tmp_path / "codes"))["clips"] == {"train": 16, "val": 6}


def test_messages(frames: str, tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--tokenizer is missing"):
        precompute_codes(PrecomputeCodes(frames=frames, out=str(tmp_path)))
    with pytest.raises(ShardError, match="no finished frames at"):
        precompute_codes(door(str(tmp_path / "gone"), tokenizer, tmp_path))
    with pytest.raises(CheckpointError):
        precompute_codes(door(frames, str(tmp_path / "gone"), tmp_path))


@pytest.mark.slow
def test_sigkill_of_the_driver(frames: str, tokenizer: str, unbroken: Path, tmp_path: Path) -> None:
    root = tmp_path / "run" / "codes"
    out = root / unbroken.name
    arguments = ["--frames", frames, "--tokenizer", tokenizer, "--out", str(root), f"--batch-clips={BATCH_CLIPS}"]
    process = start("precompute_codes", *arguments, "--tracking.no-enabled")
    wait_for(lambda: any(out.glob("commits/*.json")), process)
    kill(process)
    assert not (out / "manifest.json").exists()
    process = start("precompute_codes", *arguments, "--tracking.no-enabled")
    printed, complaints = process.communicate(timeout=180)
    assert process.returncode == 0, complaints.decode()
    assert json.loads(printed.decode().splitlines()[-1])["clips"] == {"train": 16, "val": 6}
    assert files_of(out) == files_of(unbroken)
