"""Frame shards and code shards: their schemas, their manifests, and how the two are paired.

A frame shard is a Parquet file with one row per clip; the code shard of the same name holds the codes of the same
clips in the same order and row groups. Readers see only what a manifest lists, and a manifest's fingerprint covers
the SHA-256 of every file it lists.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from evilm import storage
from evilm.config.base import fingerprint, without
from evilm.errors import ShardError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

FRAMES_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("frames", pa.list_(pa.binary()), nullable=False),  # JPEG, frame_px x frame_px, in time order
        pa.field("frame_pts_us", pa.list_(pa.int64()), nullable=False),  # when each is shown, from the first one shown
        pa.field("frame_index", pa.list_(pa.int32()), nullable=False),  # its place among all frames shown
        pa.field("duration_s", pa.float64(), nullable=False),  # measured: first to end of last frame shown
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # upright, before resizing
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rotation", pa.int16(), nullable=False),  # degrees clockwise that were applied
        pa.field("codec", pa.string(), nullable=False),
        pa.field("source_uri", pa.string(), nullable=False),  # below the video root
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("source_hash", pa.string(), nullable=False),  # SHA-256 of the video file
        pa.field("crop_box", pa.list_(pa.int32()), nullable=False),  # left, top, width, height of the upright frame
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("flags", pa.int32(), nullable=False),  # bits of `evilm.video.reasons.Flag`
        pa.field("extra", pa.map_(pa.string(), pa.string()), nullable=False),  # columns of the manifest kept aside
    ]
)
"""One row per clip."""

VIEW = pa.struct(
    [("x", pa.uint16()), ("y", pa.uint16()), ("width", pa.uint16()), ("height", pa.uint16()), ("flip", pa.bool_())]
)
"""A crop of the stored frame, in its pixels, that was coded; `flip` mirrors left and right after cropping."""


def codes_schema(num_codes_per_clip: int) -> pa.Schema:
    """One row per clip, row-aligned with its frame shard; `code_ids` are views x frames x grid x grid, row-major."""
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), nullable=False),
            pa.field("row", pa.int32(), nullable=False),
            pa.field("views", pa.list_(VIEW), nullable=False),
            pa.field("code_ids", pa.list_(pa.uint16(), num_codes_per_clip), nullable=False),
        ]
    )


def write_frames(groups: Iterable[Sequence[Mapping[str, Any]]], metadata: Mapping[str, str]) -> bytes:
    """A frame shard as Parquet bytes; one row group per element of `groups`. Equal rows give equal bytes.

    JPEGs don't compress, so pages are stored as they are, each with a CRC.

    Args:
        groups: rows as dicts with the columns of `FRAMES_SCHEMA`, already cut into row groups.
        metadata: what the footer tells: plan id and shard.
    """
    tables = (pa.Table.from_pylist([dict(row) for row in rows], schema=FRAMES_SCHEMA) for rows in groups)
    return _to_bytes(tables, FRAMES_SCHEMA, metadata, compression="none", use_dictionary=False)


def write_codes(tables: Iterable[pa.Table], codes_per_clip: int, metadata: Mapping[str, str]) -> bytes:
    """A code shard as Parquet bytes; one row group per table. Byte-stream split halves what zstd leaves."""
    return _to_bytes(
        tables,
        codes_schema(codes_per_clip),
        metadata,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"code_ids.list.element": "BYTE_STREAM_SPLIT"},
    )


def _to_bytes(tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, str], **options: Any) -> bytes:
    footer = {"evilm.schema_version": str(SCHEMA_VERSION), **{f"evilm.{k}": v for k, v in metadata.items()}}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema.with_metadata(footer), write_page_checksum=True, **options) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def read_group(uri: str, group: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of one row group of a shard, page CRCs checked.

    Raises:
        ShardError: no such file or row group, or its bytes are damaged.
    """
    fs, path = storage.resolve(uri)
    try:
        with fs.open(path, "rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            return parquet.read_row_group(group, columns=list(columns))
    except (OSError, pa.ArrowException, IndexError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ShardError(f"cannot read row group {group} of {uri}: {reason}; make the shards again") from None


def decode_frames(jpegs: Sequence[bytes]) -> np.ndarray:
    """JPEGs of one size to uint8 RGB, (frame, row, col, 3). The one JPEG decoder of training and of coding."""
    exact = {"colorspace": "RGB", "fastdct": False, "fastupsample": False}
    return np.stack([simplejpeg.decode_jpeg(jpeg, **exact) for jpeg in jpegs])


@dataclass(frozen=True)
class ShardInfo:
    """One file of a manifest."""

    file: str
    split: str
    num_clips: int
    num_bytes: int
    sha256: str
    row_groups: list[int]
    """Clips of each row group."""

    def verify(self, folder: str, data: bytes | None = None) -> bytes:
        """The file's bytes, after checking that they are those which were committed.

        Raises:
            ShardError: the file is missing or holds other bytes.
        """
        uri = storage.join(folder, self.file)
        try:
            data = storage.read_bytes(uri) if data is None else data
        except FileNotFoundError:
            raise ShardError(f"{uri} is listed in {MANIFEST} but missing; make the shards again") from None
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise ShardError(
                f"{uri} was changed after it was written (its SHA-256 is {found[:12]}); make the shards again"
            )
        return data


@dataclass(frozen=True)
class FrameManifest:
    """What a folder of frame shards holds."""

    uri: str
    """The folder."""
    plan_id: str
    num_frames: int
    frame_px: int
    shards: list[ShardInfo]
    sampling: dict[str, Any]
    """The settings that made the frames."""
    num_rows: int
    """Rows of the CSV that were considered, good and bad."""
    reasons: dict[str, int]
    """Quarantined rows by reason."""
    flags: dict[str, int] = field(default_factory=dict)
    """Clips by flag: repeated frames, rotated, ..."""
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read the manifest of a folder of frame shards.

        Raises:
            ShardError: no frame shards there, an unfinished run, or another schema version.
        """
        data = _load(uri, "frames", "pipelines/shard_videos.py")
        shards = [ShardInfo(**shard) for shard in data.pop("shards")]
        return cls(uri=storage.absolute(uri), shards=shards, **data)

    def save(self) -> None:
        """Publish the manifest: from now on readers see the shards."""
        storage.write_json(storage.join(self.uri, MANIFEST), self._content | {"fingerprint": self.fingerprint})

    @property
    def _content(self) -> dict[str, Any]:
        return {"kind": "frames"} | without(asdict(self), ["uri"])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all the manifest says, every file's SHA-256 included; not of where it lies."""
        return fingerprint(self._content)

    def of_split(self, split: str) -> list[ShardInfo]:
        """The shards of a split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def num_clips(self, split: str | None = None) -> int:
        """Clips of a split, or of all."""
        return sum(shard.num_clips for shard in self.shards if split in (None, shard.split))

    @property
    def splits(self) -> dict[str, int]:
        """Clips by split."""
        return {split: self.num_clips(split) for split in sorted({shard.split for shard in self.shards})}


@dataclass(frozen=True)
class CodeShardInfo(ShardInfo):
    """One file of a codes manifest, and the frame shard that it codes."""

    frames_file: str
    frames_sha256: str


@dataclass(frozen=True)
class CodesManifest:
    """What a folder of code shards holds: the codes of one tokenizer on one set of frame shards."""

    uri: str
    """The folder of this tokenizer's codes."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    frames: str
    """Fingerprint of the frame shards."""
    num_codes: int
    """Entries of the codebook."""
    num_frames: int
    grid: int
    """Regions along a side of a frame."""
    shards: list[CodeShardInfo]
    histograms: dict[str, list[int]]
    """By split, how often each code was used."""
    num_views: int = 1
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read the manifest of one tokenizer's codes.

        Raises:
            ShardError: no codes there, an unfinished run, or another schema version.
        """
        data = _load(uri, "codes", "pipelines/precompute_codes.py")
        shards = [CodeShardInfo(**shard) for shard in data.pop("shards")]
        data.pop("code_usage")
        return cls(uri=storage.absolute(uri), shards=shards, **data)

    def save(self) -> None:
        """Publish the manifest: from now on readers see the codes."""
        content = self._content | {"fingerprint": self.fingerprint}
        storage.write_json(storage.join(self.uri, MANIFEST), content)

    @property
    def _content(self) -> dict[str, Any]:
        return {"kind": "codes", "code_usage": self.code_usage} | without(asdict(self), ["uri"])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all the manifest says; not of where it lies."""
        return fingerprint(self._content)

    @property
    def code_usage(self) -> dict[str, float]:
        """By split, the share of the codebook used at least once. Paper: VOC. RATE, Table 6."""
        return {
            split: round(sum(count > 0 for count in histogram) / self.num_codes, 6)
            for split, histogram in self.histograms.items()
        }

    @property
    def codes_per_clip(self) -> int:
        """Codes stored for a clip: views x frames x grid x grid."""
        return self.num_views * self.num_frames * self.grid**2


@dataclass(frozen=True)
class ShardPair:
    """A frame shard and the codes of the same clips."""

    frames_uri: str
    codes_uri: str
    num_clips: int
    row_groups: list[int]
    """Clips of each row group, the same in both files."""


def pair(
    frames: FrameManifest,
    codes: CodesManifest,
    split: str,
    expect_tokenizer: str = "",
    expect_grid: int = 0,
    expect_num_frames: int = 0,
) -> list[ShardPair]:
    """Each frame shard of a split with its codes; what is not named in the `expect_*` is not checked against.

    Raises:
        ShardError: codes of another tokenizer, another grid or number of frames, other frames, or missing ones.
    """
    again = f"run pipelines/precompute_codes.py with --frames {frames.uri}"
    if expect_tokenizer and codes.tokenizer != expect_tokenizer:
        raise ShardError(f"{codes.uri} holds codes of tokenizer {codes.tokenizer}, not of {expect_tokenizer}; {again}")
    if expect_grid and codes.grid != expect_grid:
        raise ShardError(
            f"{codes.uri} holds {codes.grid} x {codes.grid} codes per frame, "
            f"the model has {expect_grid} x {expect_grid} regions; use a tokenizer of that grid, or another input size"
        )
    for wanted, whose in ((expect_num_frames, "the model"), (frames.num_frames, str(frames.uri))):
        if wanted and codes.num_frames != wanted:
            raise ShardError(
                f"{codes.uri} holds {codes.num_frames} coded frames per clip, {whose} has {wanted}; {again}"
            )
    if codes.frames != frames.fingerprint:
        raise ShardError(f"{codes.uri} was made from frames {codes.frames}, not {frames.fingerprint}; {again}")
    coded = {shard.frames_file: shard for shard in codes.shards}
    pairs = []
    for shard in frames.of_split(split):
        found = coded.get(shard.file)
        if found is None:
            raise ShardError(f"{codes.uri} has no codes of {shard.file}; {again}")
        if found.frames_sha256 != shard.sha256 or found.row_groups != shard.row_groups:
            raise ShardError(f"{codes.uri}/{found.file} was made from another {shard.file}; {again}")
        uris = storage.join(frames.uri, shard.file), storage.join(codes.uri, found.file)
        pairs.append(ShardPair(*uris, num_clips=shard.num_clips, row_groups=shard.row_groups))
    return pairs


def find_codes(codes_uri: str, tokenizer_fingerprint: str) -> str:
    """The folder with one tokenizer's codes below `codes_uri`.

    Raises:
        ShardError: there are none; says of which tokenizers there are.
    """
    uri = storage.join(codes_uri, tokenizer_fingerprint)
    if storage.exists(storage.join(uri, MANIFEST)):
        return uri
    there = [n for n in storage.list_names(codes_uri) if storage.exists(storage.join(codes_uri, n, MANIFEST))]
    raise ShardError(
        f"{codes_uri} holds no finished codes of tokenizer {tokenizer_fingerprint} "
        f"(there: {', '.join(there) or 'none'}); run pipelines/precompute_codes.py --out {codes_uri}"
    )


def _load(uri: str, kind: str, maker: str) -> dict[str, Any]:
    """A manifest's content, checked for kind, schema version and damage."""
    place = storage.join(uri, MANIFEST)
    try:
        data = storage.read_json(place)
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(f"no finished {kind} at {uri} ({MANIFEST} is missing); run {maker} --out {uri}") from None
    found = (data.get("kind"), data.get("schema_version")) if isinstance(data, dict) else (None, None)
    if found != (kind, SCHEMA_VERSION):
        raise ShardError(
            f"{place} is of kind {found[0]!r}, schema version {found[1]!r}; this version reads {kind!r}, "
            f"{SCHEMA_VERSION}; make it again with {maker}"
        )
    stored = data.pop("fingerprint", "")
    if stored != fingerprint(data):
        raise ShardError(f"{place} was changed after it was written (its fingerprint is not {stored}); make it again")
    data.pop("kind")
    return data
