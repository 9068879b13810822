"""Shard files: equal rows give equal bytes, damage is noticed, older versions are read."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilm.errors import ShardError
from evilm.shards import codes_schema, decode_frames, read_columns, read_group, write_codes, write_frames
from evilm.video.resize import to_jpeg
from helpers.stored_frames import CAPTIONS, store_frames

REGIONS = 4 * 2 * 2


def full_row(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    jpegs = [to_jpeg(rng.integers(0, 255, (64, 64, 3), np.uint8), 90) for _ in range(4)]
    return {
        "clip_id": f"clip{number}",
        "row": number,
        "split": "train",
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


SIZES = {"train": [[2, 1], [2, 1]]}
"""Two shards of three clips in two row groups."""


def test_equal_rows_give_equal_bytes() -> None:
    rows = [full_row(number) for number in range(3)]
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


def test_codes_keep_their_values_in_two_bytes_each() -> None:
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


def test_read_group_reads_one_row_group(tmp_path: Path) -> None:
    manifest = store_frames(tmp_path, SIZES)
    uri = f"{tmp_path}/{manifest.shards[1].file}"
    table = read_group(uri, 0, ["clip_id", "captions"])
    assert table.to_pylist() == [
        {"clip_id": "train003", "captions": [CAPTIONS[3]]},
        {"clip_id": "train004", "captions": [CAPTIONS[4]]},
    ]
    assert read_group(uri, 1, ["clip_id"]).num_rows == 1
    frames = decode_frames(read_group(uri, 0, ["frames"])["frames"][0].as_py())
    assert frames.shape == (4, 64, 64, 3)
    assert frames.dtype == np.uint8
    with pytest.raises(ShardError, match="row group 2"):
        read_group(uri, 2, ["clip_id"])
    with pytest.raises(ShardError, match=r"gone\.parquet"):
        read_group(f"{tmp_path}/gone.parquet", 0, ["clip_id"])


def test_damaged_page_is_noticed(tmp_path: Path) -> None:
    manifest = store_frames(tmp_path, SIZES)
    shard = manifest.shards[0]
    path = tmp_path / shard.file
    data = bytearray(path.read_bytes())
    with pq.ParquetFile(io.BytesIO(data)) as file:
        column = file.metadata.row_group(0).column(5)
    first = column.dictionary_page_offset or column.data_page_offset
    data[first + column.total_compressed_size // 2] ^= 1  # in the bytes of a page, not in a header
    path.write_bytes(data)
    with pytest.raises(ShardError, match="row group 0"):
        read_group(str(path), 0, ["frames"])
    assert read_group(str(path), 0, ["clip_id"]).num_rows == 2
    with pytest.raises(ShardError, match="changed after it was written"):
        shard.verify(str(tmp_path))


def test_shards_of_schema_version_2_are_read(tmp_path: Path) -> None:
    manifest = store_frames(tmp_path, SIZES)
    shard = manifest.shards[0]
    path = tmp_path / shard.file
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["captions"]), path, row_group_size=2)
    for columns in (["clip_id", "captions"], ["captions"]):
        assert read_group(str(path), 0, columns).equals(table.slice(0, 2).select(columns).combine_chunks())
    assert read_columns(str(path), ["captions"])["captions"].to_pylist() == table["captions"].to_pylist()
