"""Shards and manifests: equal rows give equal bytes, damage is noticed, what does not belong together is refused."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilm.errors import ShardError
from evilm.io import storage
from evilm.shards import (
    MANIFEST,
    CodeShardInfo,
    CodesManifest,
    FrameManifest,
    ShardInfo,
    codes_schema,
    decode_frames,
    find_codes,
    pair,
    read_columns,
    read_group,
    write_codes,
    write_frames,
)
from evilm.video.resize import to_jpeg

REGIONS = 4 * 2 * 2


def frame_row(number: int, split: str = "train") -> dict[str, Any]:
    rng = np.random.default_rng(number)
    jpegs = [to_jpeg(rng.integers(0, 255, (64, 64, 3), np.uint8), 90) for _ in range(4)]
    return {
        "clip_id": f"clip{number}",
        "row": number,
        "split": split,
        "captions": [f"a clip {number}"],
        "frames": jpegs,
        "frame_pts_us": [0, 1, 2, 3],
        "frame_index": [0, 1, 2, 3],
        "duration_s": 1.5,
        "fps": 24.0,
        "width": 64,
        "height": 48,
        "rotation": 0,
        "codec": "h264",
        "start_s": None,
        "end_s": 1.5,
        "source": None,
        "source_uri": "a/b.mp4",
        "source_bytes": 10,
        "source_hash": "00",
        "crop_box": [0, 0, 48, 48],
        "decoder": "pyav",
        "flags": 0,
        "extra": [("contentUrl", "x"), ("duration", "PT1S")],
    }


def frames_file(rows: list[dict[str, Any]]) -> bytes:
    return write_frames([rows[:2], rows[2:]], {"plan_id": "p", "shard": "train-00000"})


def make_frames(folder: Path) -> FrameManifest:
    """Two train shards of three clips in two row groups."""
    infos = []
    for number in range(2):
        data = frames_file([frame_row(3 * number + row) for row in range(3)])
        name, sha256 = f"train-{number:05d}-x.parquet", hashlib.sha256(data).hexdigest()
        storage.write_bytes(f"{folder}/{name}", data)
        infos.append(ShardInfo(name, "train", 3, len(data), sha256, [2, 1]))
    manifest = FrameManifest(str(folder), "p", 4, 64, infos, {"seed": 0}, 6, {})
    manifest.save()
    return manifest


def make_codes(root: Path, frames: FrameManifest, tokenizer: str = "tok") -> CodesManifest:
    uri = f"{root}/{tokenizer}"
    infos = []
    for shard in frames.shards:
        data = b"stand-in"
        info = CodeShardInfo(shard.file, shard.split, 3, len(data), "00", [2, 1], shard.file, shard.sha256)
        storage.write_bytes(f"{uri}/{shard.file}", data)
        infos.append(info)
    codes = CodesManifest(uri, tokenizer, frames.fingerprint, 4, 4, 2, infos, {"train": [3, 0, 1, 0]})
    codes.save()
    return codes


def test_equal_rows_give_equal_bytes() -> None:
    rows = [frame_row(number) for number in range(3)]
    one = frames_file(rows)
    assert one == frames_file([dict(reversed(row.items())) for row in rows])
    with pq.ParquetFile(io.BytesIO(one)) as file:
        assert file.metadata.num_row_groups == 2
        assert file.schema_arrow.metadata[b"evilm.plan_id"] == b"p"
        assert file.metadata.row_group(0).column(4).compression == "UNCOMPRESSED"
        back = file.read().to_pylist()
    assert [row["clip_id"] for row in back] == ["clip0", "clip1", "clip2"]
    assert back[1]["frames"] == rows[1]["frames"]
    assert dict(back[1]["extra"]) == dict(rows[1]["extra"])


def test_codes_keep_values_and_stay_small() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9420, (1000, REGIONS)).astype(np.uint16)
    ids[0, 0] = 65_535
    view = {"x": 0, "y": 0, "width": 256, "height": 256, "flip": False}
    columns = {
        "clip_id": [str(row) for row in range(1000)],
        "row": pa.array(range(1000), pa.int32()),
        "views": [[view]] * 1000,
        "code_ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), REGIONS),
    }
    data = write_codes([pa.table(columns, codes_schema(REGIONS))], REGIONS, {})
    with pq.ParquetFile(io.BytesIO(data)) as file:
        column = file.metadata.row_group(0).column(7)
        back = file.read()["code_ids"].combine_chunks()
    assert back.type == pa.list_(pa.uint16(), REGIONS)
    assert np.array_equal(back.flatten().to_numpy().reshape(-1, REGIONS), ids)
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert column.total_compressed_size < 2 * ids.size  # below two bytes a code


def test_read_group(tmp_path: Path) -> None:
    manifest = make_frames(tmp_path)
    uri = f"{tmp_path}/{manifest.shards[1].file}"
    table = read_group(uri, 0, ["clip_id", "captions"])
    assert table.to_pylist() == [
        {"clip_id": "clip3", "captions": ["a clip 3"]},
        {"clip_id": "clip4", "captions": ["a clip 4"]},
    ]
    assert read_group(uri, 1, ["clip_id"]).num_rows == 1
    frames = decode_frames(read_group(uri, 0, ["frames"])["frames"][0].as_py())
    assert frames.shape == (4, 64, 64, 3)
    assert frames.dtype == np.uint8
    with pytest.raises(ShardError, match="row group 2"):
        read_group(uri, 2, ["clip_id"])
    with pytest.raises(ShardError, match=r"gone\.parquet"):
        read_group(f"{tmp_path}/gone.parquet", 0, ["clip_id"])


def test_damaged_pages_are_noticed(tmp_path: Path) -> None:
    manifest = make_frames(tmp_path)
    shard = manifest.shards[0]
    path = tmp_path / shard.file
    data = bytearray(path.read_bytes())
    with pq.ParquetFile(io.BytesIO(data)) as file:
        column = file.metadata.row_group(0).column(5)
    data[column.data_page_offset + column.total_compressed_size - 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="row group 0"):
        read_group(str(path), 0, ["frames"])
    assert read_group(str(path), 0, ["clip_id"]).num_rows == 2
    with pytest.raises(ShardError, match="changed after it was written"):
        shard.verify(str(tmp_path))


def test_manifest_round_trip(tmp_path: Path) -> None:
    manifest = make_frames(tmp_path / "a")
    back = FrameManifest.load(str(tmp_path / "a"))
    assert back == manifest
    assert back.fingerprint == manifest.fingerprint
    assert make_frames(tmp_path / "b").fingerprint == manifest.fingerprint  # not of the place
    assert replace(manifest, shards=manifest.shards[:1]).fingerprint != manifest.fingerprint
    assert (back.num_clips("train"), back.num_clips("val"), back.splits) == (6, 0, {"train": 6})
    assert [shard.file for shard in back.of_split("train")] == ["train-00000-x.parquet", "train-00001-x.parquet"]


def test_manifests_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no finished frames at .* run pipelines/shard_videos\.py"):
        FrameManifest.load(str(tmp_path))
    make_frames(tmp_path)
    with pytest.raises(ShardError, match="'frames'"):
        CodesManifest.load(str(tmp_path))
    place = tmp_path / MANIFEST
    text = place.read_text()
    place.write_text(text.replace('"schema_version": 3', '"schema_version": 1'))
    with pytest.raises(ShardError, match=r"schema version 1; .* --overwrite$") as caught:
        FrameManifest.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    place.write_text(text.replace('"num_rows": 6', '"num_rows": 7'))
    with pytest.raises(ShardError, match="changed after it was written"):
        FrameManifest.load(str(tmp_path))
    place.write_text(text[:50])
    with pytest.raises(ShardError, match="not valid JSON"):
        FrameManifest.load(str(tmp_path))


def test_codes_manifest_round_trip(tmp_path: Path) -> None:
    codes = make_codes(tmp_path / "codes", make_frames(tmp_path / "frames"))
    assert CodesManifest.load(codes.uri) == codes
    assert codes.code_usage == {"train": 0.5}
    assert codes.codes_per_clip == 16


def test_pairs(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames")
    codes = make_codes(tmp_path / "codes", frames)
    pairs = pair(frames, codes, "train", expect_tokenizer="tok", expect_grid=2, expect_num_frames=4)
    assert [(item.num_clips, item.row_groups) for item in pairs] == [(3, [2, 1]), (3, [2, 1])]
    assert pairs[1].frames_uri == f"{tmp_path}/frames/train-00001-x.parquet"
    assert pairs[1].codes_uri == f"{tmp_path}/codes/tok/train-00001-x.parquet"
    assert pair(frames, codes, "val") == []


def test_pairs_that_are_refused(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames")
    codes = make_codes(tmp_path / "codes", frames)
    expectations: list[tuple[dict[str, Any], str]] = [
        ({"expect_tokenizer": "other"}, "codes of tokenizer tok, not of other"),
        ({"expect_grid": 8}, "2 x 2 codes per frame, the model has 8 x 8"),
        ({"expect_num_frames": 8}, "4 frames per clip, the model takes 8, which does not divide it"),
    ]
    for expected, message in expectations:
        with pytest.raises(ShardError, match=message):
            pair(frames, codes, "train", **expected)
    assert pair(replace(frames, num_rows=7, shards=frames.shards[:1]), codes, "train"), "codes of more shards"
    with pytest.raises(ShardError, match=r"no codes of train-00001-x\.parquet"):
        pair(frames, replace(codes, shards=codes.shards[:1]), "train")
    swapped = [replace(codes.shards[0], frames_sha256="11"), codes.shards[1]]
    with pytest.raises(ShardError, match="made from another train-00000"):
        pair(frames, replace(codes, shards=swapped), "train")


def test_find_codes(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames")
    codes = make_codes(tmp_path / "codes", frames)
    assert find_codes(str(tmp_path / "codes"), "tok") == codes.uri
    with pytest.raises(ShardError, match=r"no finished codes of tokenizer new \(there: tok\)"):
        find_codes(str(tmp_path / "codes"), "new")
    with pytest.raises(ShardError, match=r"\(there: none\)"):
        find_codes(str(tmp_path / "nothing"), "new")


def test_shards_of_version_2_are_read(tmp_path: Path) -> None:
    manifest = make_frames(tmp_path)
    shard = manifest.shards[0]
    path = tmp_path / shard.file
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["captions"]), path, row_group_size=2)
    for columns in (["clip_id", "captions"], ["captions"]):
        assert read_group(str(path), 0, columns).equals(table.slice(0, 2).select(columns).combine_chunks())
    assert read_columns(str(path), ["captions"])["captions"].to_pylist() == table["captions"].to_pylist()
