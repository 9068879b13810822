"""The files of shards: their schemas, and how they are written and read."""

import base64
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evilm.errors import ShardError
from evilm.io import storage

T = TypeVar("T")

SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""Version 2 has one caption per clip, `caption`; it is read as a list of one."""

FRAMES_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),  # the first one, for readers that know of one only
        pa.field("captions", pa.list_(pa.string()), nullable=False),  # all, in the manifest's order; none is empty
        pa.field("frames", pa.list_(pa.binary()), nullable=False),  # JPEG, frame_px x frame_px, in time order
        pa.field("frame_pts_us", pa.list_(pa.int64()), nullable=False),  # when each is shown, in the file's own time
        pa.field("frame_index", pa.list_(pa.int32()), nullable=False),  # its place among all frames shown
        pa.field("duration_s", pa.float64(), nullable=False),  # measured: first to end of last frame shown
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # upright, before resizing
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rotation", pa.int16(), nullable=False),  # degrees clockwise that were applied
        pa.field("codec", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),  # span of a longer video that the clip is; null from the start
        pa.field("end_s", pa.float64()),  # null to the end
        pa.field("source", pa.string()),  # manifest, where there were several
        pa.field("source_uri", pa.string(), nullable=False),  # below the video root, or a URL without its secrets
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("source_hash", pa.string(), nullable=False),  # SHA-256 of the video file
        pa.field("crop_box", pa.list_(pa.int32()), nullable=False),  # left, top, width, height of the upright frame
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("flags", pa.int32(), nullable=False),  # bits of `evilm.video.reasons.ClipFlag`
        pa.field("extra", pa.map_(pa.string(), pa.string()), nullable=False),  # columns of the manifest kept aside
    ]
)
"""One row per clip."""

VIEW = pa.struct(
    [("x", pa.uint16()), ("y", pa.uint16()), ("width", pa.uint16()), ("height", pa.uint16()), ("flip", pa.bool_())]
)
"""A crop of the stored frame, in its pixels, that was coded; `flip` mirrors left and right after cropping."""

_TAIL_BYTES = 64 * 2**10
"""Read at once for a footer; that of a shard of 16 row groups has 44 KB."""

_HISTOGRAM = b"evilm.histogram"
_CODES_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "column_encoding": {"code_ids.list.element": "BYTE_STREAM_SPLIT"},  # halves what zstd leaves
}


def codes_schema(num_codes_per_clip: int) -> pa.Schema:
    """Return the schema: rows as in the frame shard; `code_ids` are views x frames x grid x grid, row-major."""
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), nullable=False),
            pa.field("row", pa.int32(), nullable=False),
            pa.field("views", pa.list_(VIEW), nullable=False),
            pa.field("code_ids", pa.list_(pa.uint16(), num_codes_per_clip), nullable=False),
        ]
    )


def write_frames(groups: Iterable[Sequence[Mapping[str, Any]]], metadata: Mapping[str, str], path: str = "") -> bytes:
    """Encode a frame shard as Parquet bytes; one row group per element of `groups`. Equal rows give equal bytes.

    JPEGs don't compress, so pages are stored as they are, each with a CRC.

    Args:
        groups: rows as dicts with the columns of `FRAMES_SCHEMA` but `caption`, already cut into row groups.
        metadata: what the footer tells: plan id and shard.
        path: write to this local file instead, group by group.
    """
    tables = (
        pa.Table.from_pylist([{**row, "caption": row["captions"][0]} for row in rows], schema=FRAMES_SCHEMA)
        for rows in groups
    )
    return _to_bytes(tables, FRAMES_SCHEMA, metadata, path, compression="none", use_dictionary=False)


def write_codes(
    tables: Iterable[pa.Table],
    codes_per_clip: int,
    metadata: Mapping[str, str],
    path: str = "",
    histogram: np.ndarray | None = None,
) -> bytes:
    """Encode a code shard as Parquet bytes, one row group per table; with a `path`, write it there table by table.

    Args:
        tables: with the columns of `codes_schema`.
        codes_per_clip: of all views.
        metadata: what the footer tells.
        histogram: how often each code was used, (code,); read when all tables are written, and kept in the footer.
    """
    return _to_bytes(tables, codes_schema(codes_per_clip), metadata, path, histogram, **_CODES_OPTIONS)


def read_histogram(uri: str) -> np.ndarray:
    """Return how often each code is used in a code shard, int64 (code,).

    Raises:
        ShardError: no such file, or it holds no histogram.
    """
    metadata = pq.read_metadata(pa.BufferReader(read_footer(uri))).metadata or {}
    if _HISTOGRAM not in metadata:
        raise ShardError(f"{uri} holds no histogram of its codes; recompute the codes")
    return np.frombuffer(zlib.decompress(base64.b64decode(metadata[_HISTOGRAM])), "<u4").astype(np.int64)


def _to_bytes(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    metadata: Mapping[str, str],
    path: str = "",
    histogram: np.ndarray | None = None,
    **options: Any,
) -> bytes:
    footer = {"evilm.schema_version": str(SCHEMA_VERSION), **{f"evilm.{k}": v for k, v in metadata.items()}}
    sink = io.BytesIO()
    with pq.ParquetWriter(path or sink, schema.with_metadata(footer), write_page_checksum=True, **options) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
        if histogram is not None:
            writer.add_key_value_metadata(
                {_HISTOGRAM: base64.b64encode(zlib.compress(histogram.astype("<u4").tobytes()))}
            )
    return sink.getvalue()


def read_group(uri: str, group: int, columns: Sequence[str], footer: pq.FileMetaData | None = None) -> pa.Table:
    """Read columns of one row group of a shard, with page CRCs checked; a read that fails is tried again.

    With the `footer` of the file, where it is known, a remote row group is read by a single request.

    Raises:
        ShardError: no such file or row group, or its bytes are damaged.
    """

    def read() -> pa.Table:
        with open_shard(uri) if footer is None else _open_group(uri, group, columns, footer) as parquet:
            return with_captions(parquet.read_row_group(group, columns=stored_columns(parquet, columns)))

    return _read(uri, f"row group {group} of {uri}", read)


def stored_columns(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """Name columns of the newest schema as a shard of an earlier version does."""
    has = "captions" in file.schema_arrow.names
    return ["caption" if name == "captions" and not has else name for name in columns]


def with_captions(table: pa.Table) -> pa.Table:
    """Return a table of a shard with lists of captions, also where the shard has one caption per clip."""
    if "captions" in table.column_names or "caption" not in table.column_names:
        return table
    place, texts = table.column_names.index("caption"), table["caption"].combine_chunks()
    lists = pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), texts)
    return table.set_column(place, FRAMES_SCHEMA.field("captions"), lists)


def read_columns(uri: str, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a shard, as `read_group` does."""

    def read() -> pa.Table:
        with open_shard(uri) as parquet:
            return with_captions(parquet.read(columns=stored_columns(parquet, columns)))

    return _read(uri, uri, read)


def read_footer(uri: str) -> bytes:
    """Read the end of a shard's file from its footer on: a Parquet file by itself, without row groups.

    Raises:
        ShardError: no such file, or it has no footer.
    """

    def read() -> bytes:
        tail = storage.read_bytes(uri, last=_TAIL_BYTES)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if tail[-4:] != b"PAR1":
            raise pa.ArrowInvalid("not a Parquet file")
        return tail[-length:] if length <= len(tail) else storage.read_bytes(uri, last=length)

    return _read(uri, uri, read)


def _read(uri: str, what: str, read: Callable[[], T]) -> T:
    """Return what `read` returns, tried again where the storage fails in passing."""
    try:
        return storage.with_retries(uri, read)
    except (OSError, pa.ArrowException, IndexError, KeyError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ShardError(f"cannot read {what}: {reason}; write the shards again") from None


@contextmanager
def open_shard(uri: str) -> Iterator[pq.ParquetFile]:
    """Open a shard's file, with page CRCs checked; Arrow itself reads local ones, without a lock of Python's."""
    if storage.is_local(uri):
        with pq.ParquetFile(storage.absolute(uri), page_checksum_verification=True) as parquet:
            yield parquet
        return
    fs, path = storage.resolve(uri)
    # Column chunks are asked for in one piece; reading ahead, s3fs would fetch megabytes that nobody wants.
    with (
        fs.open(path, "rb", cache_type="none") as file,
        pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True) as parquet,
    ):
        yield parquet


@contextmanager
def _open_group(uri: str, group: int, columns: Sequence[str], footer: pq.FileMetaData) -> Iterator[pq.ParquetFile]:
    """Open a shard's file to read these columns of one row group; of a remote file only their bytes are fetched."""
    options: dict[str, Any] = {"metadata": footer, "page_checksum_verification": True, "pre_buffer": False}
    if storage.is_local(uri):
        with pq.ParquetFile(storage.absolute(uri), **options) as parquet:
            yield parquet
        return
    row_group = footer.row_group(group)
    chunks = [row_group.column(number) for number in range(row_group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    stops = [start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)]
    fs, path = storage.resolve(uri)
    data = fs.cat_file(path, start=min(starts), end=max(stops))  # what lies between the columns is small
    with pq.ParquetFile(pa.PythonFile(_Piece(data, min(starts)), "r"), **options) as parquet:
        yield parquet


class _Piece(io.RawIOBase):
    """The bytes of a file from some place on, in memory; to Arrow they are the file."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start, self._place = memoryview(data), start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._start + len(self._data)
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: end}[whence]
        return self._place

    def read(self, size: int = -1) -> memoryview:  # type: ignore[override]  # a view, which Arrow does not copy
        first = self._place - self._start
        piece = self._data[first : first + size] if size >= 0 else self._data[first:]
        self._place += len(piece)
        return piece
