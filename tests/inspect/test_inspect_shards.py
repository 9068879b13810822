"""Inspection finds what shards hold, names all that is damaged by file and row group, and draws what can be seen."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evilm.config.command_line import parse
from evilm.config.stages import InspectShards
from evilm.errors import ConfigError, ShardError, UsageError
from evilm.ingest.quarantine import SCHEMA as QUARANTINE_SCHEMA
from evilm.inspect.contact_sheets import choose_clips, wrap
from evilm.inspect.inspect_shards import inspect_shards
from evilm.inspect.shard_stats import histogram, summarise
from evilm.shards import CodeShardInfo, CodesManifest, FrameManifest, ShardInfo, codes_schema, write_codes, write_frames
from evilm.video.reasons import ClipFlag, RejectReason
from evilm.video.resize import to_jpeg
from helpers.paths import ROOT

PX, NUM_FRAMES, GRID, NUM_CODES, NUM_VIEWS = 32, 2, 2, 8, 2
GROUPS = {"train-00000": [3, 2], "train-00001": [3, 1], "val-00000": [2]}


def clip(split: str, number: int, row: int, changed: dict[str, Any]) -> dict[str, Any]:
    """A row of a shard; every third clip has the caption of the one before."""
    rng = np.random.default_rng([number, *split.encode()])
    frames = [to_jpeg(rng.integers(0, 256, (PX, PX, 3), dtype=np.uint8), 90) for _ in range(NUM_FRAMES)]
    return {
        "clip_id": f"{split}{number}",
        "row": row,
        "split": split,
        "captions": [f"A red star, moving on; number {number - (number % 3 == 2)}"],
        "frames": frames,
        "frame_pts_us": [250_000, 750_000],
        "frame_index": [3, 9],
        "duration_s": 1.0 + number,
        "fps": 12.0,
        "width": 176,
        "height": 144 if number else 720,
        "rotation": 0,
        "codec": "h264" if number else "vp9",
        "start_s": None,
        "end_s": None,
        "source": "",
        "source_uri": f"{number}.mp4",
        "source_bytes": 1000 * number,
        "source_hash": hashlib.sha256(split.encode() + bytes([number])).hexdigest(),
        "crop_box": [16, 0, 144, 144],
        "decoder": "pyav",
        "flags": int(ClipFlag.VFR) if number == 1 else 0,
        "extra": [],
    } | changed


def publish(folder: Path, name: str, data: bytes, split: str, groups: Sequence[int]) -> ShardInfo:
    digest = hashlib.sha256(data).hexdigest()
    file = f"{name}-{digest[:12]}.parquet"
    (folder / file).write_bytes(data)
    return ShardInfo(file, split, sum(groups), len(data), digest, list(groups))


def store(folder: Path, changed: dict[str, dict[str, Any]] | None = None) -> FrameManifest:
    """Three shards of eleven clips, two rows quarantined; `changed` gives clips other values."""
    folder.mkdir()
    shards, numbers = [], {"train": 0, "val": 0}
    for name, groups in GROUPS.items():
        split = name.partition("-")[0]
        rows, row = [], 0
        for size in groups:
            rows.append([])
            for _ in range(size):
                clip_id = f"{split}{numbers[split]}"
                rows[-1].append(clip(split, numbers[split], row, (changed or {}).get(clip_id, {})))
                numbers[split], row = numbers[split] + 1, row + 1
        shards.append(publish(folder, name, write_frames(rows, {"shard": name}), split, groups))
    bad = [{"record": 5, "clip_id": "x", "reason": str(reason), "detail": "why"} for reason in REASONS]
    (folder / "quarantine").mkdir()
    pq.write_table(pa.Table.from_pylist(bad, QUARANTINE_SCHEMA), folder / "quarantine" / "clips.parquet")
    reasons = {str(reason): 1 for reason in REASONS}
    manifest = FrameManifest(str(folder), "plan", NUM_FRAMES, PX, shards, {}, 11 + len(bad), reasons)
    manifest.save()
    return manifest


REASONS = (RejectReason.TRUNCATED, RejectReason.TOO_SHORT)


def code(folder: Path, frames: FrameManifest, swapped: bool = False) -> CodesManifest:
    """Codes of all clips, two views each; `swapped` mixes up two clips."""
    folder.mkdir()
    per_clip = NUM_VIEWS * NUM_FRAMES * GRID**2
    views = [{"x": 0, "y": 0, "width": PX, "height": PX, "flip": False}, {"x": 4, "y": 6, "width": 20, "height": 18}]
    views[1]["flip"] = True
    shards, histograms = [], {split: np.zeros(NUM_CODES, np.int64) for split in frames.splits}
    for shard in frames.shards:
        ids = pq.read_table(f"{frames.uri}/{shard.file}", columns=["clip_id"])["clip_id"].to_pylist()
        codes = np.arange(len(ids) * per_clip, dtype=np.uint16).reshape(len(ids), per_clip) % (NUM_CODES - 1)
        histograms[shard.split] += np.bincount(codes[:, : per_clip // 2].ravel(), minlength=NUM_CODES)
        if swapped:
            ids[0], ids[1] = ids[1], ids[0]
        columns = {"clip_id": ids, "row": range(len(ids)), "views": [views] * len(ids), "code_ids": codes.tolist()}
        whole = pa.Table.from_pydict({name: list(values) for name, values in columns.items()}, codes_schema(per_clip))
        starts = np.cumsum([0, *shard.row_groups])
        tables = [whole.slice(start, size) for start, size in zip(starts, shard.row_groups, strict=False)]
        data = write_codes(tables, per_clip, {"frames_sha256": shard.sha256})
        info = publish(folder, shard.file.rpartition("-")[0], data, shard.split, shard.row_groups)
        shards.append(CodeShardInfo(**vars(info), frames_file=shard.file, frames_sha256=shard.sha256))
    counts = {split: histogram.tolist() for split, histogram in histograms.items()}
    manifest = CodesManifest(
        str(folder), "tok", frames.fingerprint, NUM_CODES, NUM_FRAMES, GRID, shards, counts, NUM_VIEWS
    )
    manifest.save()
    return manifest


def inspect(frames: FrameManifest | Path, **settings: Any) -> dict[str, Any]:
    uri = str(frames if isinstance(frames, Path) else frames.uri)
    return inspect_shards(InspectShards(frames=uri).override(settings))


def test_statistics_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = store(tmp_path / "frames", {"train4": {"source_hash": "same"}, "val1": {"source_hash": "same"}})
    code(tmp_path / "codes", frames)
    summary = inspect(frames, codes=str(tmp_path / "codes"))
    assert summary["clips"] == {"train": 9, "val": 2}
    assert summary["measures"]["duration_s"] == {"min": 1.0, "p5": 1.0, "median": 4.0, "p95": 9.0, "max": 9.0}
    assert summary["measures"]["caption_words"]["median"] == 7
    assert summary["measures"]["frames"]["max"] == NUM_FRAMES
    assert summary["measures"]["jpeg_bytes"]["min"] > 0
    assert summary["kinds"]["codec"] == {"h264": 9, "vp9": 2}
    assert summary["kinds"]["flags"] == {"vfr": 2}
    assert summary["reasons"] == {"too_short": 1, "truncated": 1}
    assert summary["repeated"] == {"video": 1, "clip": 1, "caption": 5}
    assert list(summary["words"].items())[:2] == [("a", 11), ("moving", 11)]
    assert summary["codes"]["code_usage"]["train"] == 0.875
    assert "num_problems" not in summary
    printed = capsys.readouterr().out
    for part in ("11 clips of 13 rows", "too_short", "'train4' = 'val1'", "caption, words", "87.5%"):
        assert part in printed


def test_intact_data_set_verifies(tmp_path: Path) -> None:
    frames = store(tmp_path / "frames")
    code(tmp_path / "codes", frames)
    for verify in ("quick", "full"):
        summary = inspect(frames, codes=str(tmp_path / "codes"), verify=verify)
        assert (summary["num_problems"], summary["problems"], summary["notes"]) == (0, [], [])
    assert summary["num_jpegs"] == 11 * NUM_FRAMES
    assert summary["num_bytes_read"] == sum(p.stat().st_size for p in tmp_path.glob("*/*.parquet"))


def test_damaged_files_and_row_groups_are_named(tmp_path: Path) -> None:
    frames = store(tmp_path / "frames")
    first, second, third = (tmp_path / "frames" / shard.file for shard in frames.shards)
    data = bytearray(first.read_bytes())
    metadata = pq.ParquetFile(first).metadata
    column = next(
        c
        for c in map(metadata.row_group(1).column, range(metadata.num_columns))
        if c.path_in_schema.startswith("frames")
    )
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    first.write_bytes(data)
    second.unlink()
    third.write_bytes(third.read_bytes()[:-5])
    summary = inspect(frames, verify="full")
    found = "\n".join(summary["problems"])
    assert f"{first.name}: was changed after it was written" in found
    assert f"{first.name}: row group 1, column frames: is damaged" in found
    assert "row group 0" not in found
    assert f"{second.name}: is missing, though the manifest lists it" in found
    assert f"{third.name}: has {frames.shards[2].num_bytes - 5} bytes" in found
    assert f"{third.name}: footer: cannot be read" in found
    assert summary["num_problems"] == len(summary["problems"]) == 5
    quick = inspect(frames, verify="quick")
    assert quick["num_problems"] == 3  # what lies in pages is not seen
    with pytest.raises(
        ShardError, match=f"cannot read .*{first.name}: .*CRC.*; run again with --verify to list all damage"
    ):
        inspect(frames)


@pytest.mark.parametrize(
    ("clip_id", "changed", "said"),
    [
        ("train1", {"row": 7}, "row group 0: row 1 is numbered 7"),
        ("train3", {"split": "val"}, "row group 1, clip 'train3': is of split 'val'"),
        ("train4", {"frame_pts_us": [750_000, 250_000]}, "its frame_pts_us do not ascend"),
        ("train4", {"frames": [b"no JPEG"] * 2}, "frame 0 can't be decoded"),
        ("val0", {"frames": [to_jpeg(np.zeros((16, 16, 3), np.uint8), 90)] * 2}, "frame 0 is 16 x 16, not 32 x 32"),
        ("val0", {"frame_index": [1, 2, 3]}, "has 2 frames, 2 times and 3 places, not 2 each"),
        ("val1", {"clip_id": "train0"}, "clip 'train0': is in the data set more than once"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, clip_id: str, changed: dict[str, Any], said: str) -> None:
    summary = inspect(store(tmp_path / "frames", {clip_id: changed}), verify="full")
    assert said in "\n".join(summary["problems"])
    assert all(file.startswith(clip_id.rstrip("0123456789")) for file in summary["problems"])


def test_flagged_repeated_frames_are_no_problem(tmp_path: Path) -> None:
    twice = {"frame_pts_us": [0, 0], "frame_index": [0, 0], "flags": int(ClipFlag.REPEATED)}
    assert inspect(store(tmp_path / "frames", {"train1": twice}), verify="full")["num_problems"] == 0


def test_disagreeing_counts_are_problems(tmp_path: Path) -> None:
    frames = store(tmp_path / "frames")
    replace(frames, num_rows=20, reasons={"truncated": 2}).save()
    problems = "\n".join(inspect(frames, verify="quick")["problems"])
    assert "11 clips and 2 rows quarantined, of 20 rows" in problems
    assert "quarantine: truncated: 1 rows in the tables, 2 in the manifest" in problems
    assert "quarantine: too_short: 1 rows in the tables, 0 in the manifest" in problems


def test_codes_of_other_clips_are_problems(tmp_path: Path) -> None:
    frames = store(tmp_path / "frames")
    codes = code(tmp_path / "codes", frames, swapped=True)
    problems = inspect(frames, codes=codes.uri, verify="full")["problems"]
    assert len(problems) == 3
    assert problems[0].startswith(codes.shards[0].file)
    assert "row group 0, column clip_id: holds other clips than the frames: 'train1' beside 'train0'" in problems[0]


def test_files_in_no_manifest_are_noted(tmp_path: Path) -> None:
    frames = store(tmp_path / "frames")
    (tmp_path / "frames" / "train-00000-000000000000.parquet").write_bytes(b"of a run that was killed")
    summary = inspect(frames, verify="quick")
    assert summary["num_problems"] == 0
    assert "train-00000-000000000000.parquet is in no manifest" in summary["notes"][0]


def test_figures_and_contact_sheets_are_written(tmp_path: Path) -> None:
    long_caption = {"captions": ["сложная подпись " * 30 + "x" * 300], "clip_id": "id" * 80}
    frames = store(tmp_path / "frames", {"train1": long_caption})
    code(tmp_path / "codes", frames)
    out = tmp_path / "look"
    settings = {"codes": str(tmp_path / "codes"), "out": str(out), "sheets": 22, "sheet_clips": "val1, train3"}
    summary = inspect(frames, **settings)
    names = ["stats.png", "sheets/train-00.png", "sheets/val-00.png", "sheets/clips-00.png"]
    assert summary["pictures"] == names
    assert json.loads((out / "summary.json").read_text()) == summary
    pictures = {name: Image.open(out / name) for name in names}
    assert all(min(picture.size) > 400 for picture in pictures.values())
    colours = {colour for _, colour in pictures["sheets/val-00.png"].convert("RGB").getcolors(1 << 20) or []}
    assert (0xFF, 0x4D, 0x4D) in colours  # the box of the second view
    before = {name: (out / name).read_bytes() for name in names[1:]}
    inspect(frames, **settings)
    assert {name: (out / name).read_bytes() for name in names[1:]} == before


def test_choose_clips_is_seeded_and_complete(tmp_path: Path) -> None:
    frames = store(tmp_path / "frames")
    chosen = choose_clips(frames, "train", 4, seed=0)
    assert chosen == choose_clips(frames, "train", 4, seed=0)
    assert chosen != choose_clips(frames, "train", 4, seed=1)
    everything = [(shard.file, row) for shard, row in choose_clips(frames, "train", 99, seed=0)]
    assert everything == [(shard.file, row) for shard in frames.of_split("train") for row in range(shard.num_clips)]


def test_captions_are_wrapped_to_four_lines() -> None:
    lines = wrap(["one two three " * 5 + "w" * 100], 60)
    assert "".join(lines).replace(" ", "") == "onetwothree" * 5 + "w" * 100
    assert all(len(line) <= 60 for line in lines)
    assert wrap(["a red star", "a star"], 60) == ["a red star (and 1 more)"]
    for text in ("one two three " * 50_000, "\u732b" * 60_000):
        lines = wrap([text], 60)
        assert len(lines) <= 4
        assert text.startswith(lines[0])
        assert lines[-1].endswith("…")


def test_quantiles_and_histograms_of_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(3, 0.5, 100_001)
    summary = summarise(values)
    assert (summary["min"], summary["max"]) == pytest.approx((values.min(), values.max()), rel=1e-5)
    for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95)):
        assert summary[name] == pytest.approx(np.quantile(values, share), rel=2e-3)
    counts, edges = histogram(values, 24)
    assert (len(counts), counts.sum()) == (24, len(values))
    assert edges[-1] < values.max()  # the tail is in the last bin
    counts, edges = histogram(np.array([2, 2, 3, 5]), 24)
    assert (counts.tolist(), edges[0], edges[-1]) == ([2, 1, 0, 1], 1.5, 5.5)
    assert summarise(np.zeros(0)) == {}


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--frames is missing"):
        inspect_shards(InspectShards())
    with pytest.raises(ShardError, match="no finished frames at"):
        inspect(tmp_path / "gone")
    frames = store(tmp_path / "frames")
    with pytest.raises(UsageError, match="--out is missing"):
        inspect(frames, sheets=3)
    with pytest.raises(ConfigError, match=r"holds manifest.json of another command"):
        inspect(frames, out=frames.uri)
    with pytest.raises(ConfigError, match="no clip 'nobody' in"):
        inspect(frames, out=str(tmp_path / "look"), sheet_clips="train1,nobody")
    others = code(tmp_path / "codes", store(tmp_path / "others", {"train0": {"captions": ["another one"]}}))
    for place in (others.uri, str(tmp_path)):
        with pytest.raises(ShardError, match="frames"):
            inspect(frames, codes=place)


def test_unfinished_run_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "frames" / "_plan"
    folder.mkdir(parents=True)
    shards = [{"name": name, "split": "train", "num_rows": 3} for name in GROUPS]
    plan = {
        "number": 0,
        "folder": "0000-00001",
        "kind": "rows",
        "plan_id": "p",
        "manifest": "m",
        "num_rows": 9,
        "shards": shards,
    }
    (folder / "0000.json").write_text(json.dumps(plan | {"reasons": {"counts": {}, "examples": {}}}))
    (tmp_path / "frames" / "commits").mkdir()
    (tmp_path / "frames" / "commits" / "train-00001.p.json").write_text("{}")
    with pytest.raises(ShardError, match=r"is unfinished, 1 of 3 shards are committed; the same .* command continues"):
        inspect(tmp_path / "frames")


def test_bare_verify_means_full() -> None:
    assert parse("inspect_shards", ["--frames", "x", "--verify"]).verify == "full"
    assert parse("inspect_shards", ["--verify", "--frames", "x"]).verify == "full"
    assert parse("inspect_shards", ["--frames", "x", "--verify", "quick"]).verify == "quick"
    assert parse("inspect_shards", ["--frames", "x"]).verify == "no"


def test_command_exits_with_1_on_a_problem(tmp_path: Path) -> None:
    frames = store(tmp_path / "frames", {"train1": {"row": 7}})
    command = [sys.executable, str(ROOT / "pipelines" / "inspect_shards.py"), "--frames", frames.uri, "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 problem found" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["num_problems"] == 1


def test_inspection_on_s3_finds_the_same(s3_bucket: str, tmp_path: Path) -> None:
    import s3fs

    frames = store(tmp_path / "frames")
    s3fs.S3FileSystem().put(f"{tmp_path}/frames", f"{s3_bucket}/frames", recursive=True)
    here = inspect(frames, verify="full")
    there = inspect_shards(InspectShards(frames=f"{s3_bucket}/frames", verify="full", out=f"{s3_bucket}/look"))
    same = ("measures", "kinds", "reasons", "num_problems", "num_jpegs", "num_bytes_read", "notes")
    assert {name: there[name] for name in same} == {name: here[name] for name in same}
    assert s3fs.S3FileSystem().exists(f"{s3_bucket}/look/stats.png")


@pytest.mark.long
def test_inspection_in_ray_tasks_finds_the_same(ray_local: Any, tmp_path: Path) -> None:
    frames = store(tmp_path / "frames", {"train1": {"row": 7}, "val0": {"split": "x"}})
    code(tmp_path / "codes", frames)
    settings = {"codes": str(tmp_path / "codes"), "verify": "full"}
    here = inspect(frames, **settings) | {"seconds": 0}
    assert inspect(frames, **settings, **{"cluster.num_workers": 2}) | {"seconds": 0} == here


@pytest.mark.parametrize("words", [RejectReason, ClipFlag])
def test_every_reason_and_flag_is_documented(words: type[RejectReason] | type[ClipFlag]) -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    names = [word.value if isinstance(word, RejectReason) else str(word.name).lower() for word in words]
    assert [name for name in names if f"| `{name}` |" not in text] == []
