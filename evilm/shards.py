"""Frame shards and code shards: their schemas, their manifests, and how the two are paired.

A frame shard is a Parquet file with one row per clip; the code shard of the same name holds the codes of the same
clips in the same order and row groups. Readers see only what a manifest lists, and a manifest's fingerprint covers
the SHA-256 of every file it lists.
"""

import errno
import hashlib
import io
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"

FRAMES_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
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
        pa.field("flags", pa.int32(), nullable=False),  # bits of `evilm.video.reasons.Flag`
        pa.field("extra", pa.map_(pa.string(), pa.string()), nullable=False),  # columns of the manifest kept aside
    ]
)
"""One row per clip."""

VIEW = pa.struct(
    [("x", pa.uint16()), ("y", pa.uint16()), ("width", pa.uint16()), ("height", pa.uint16()), ("flip", pa.bool_())]
)
"""A crop of the stored frame, in its pixels, that was coded; `flip` mirrors left and right after cropping."""

_HICCUPS = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EBUSY}
_WAITS_S = (0.2, 1.0, 5.0)

_CODES_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": False,
    "column_encoding": {"code_ids.list.element": "BYTE_STREAM_SPLIT"},  # halves what zstd leaves
}


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


def write_frames(groups: Iterable[Sequence[Mapping[str, Any]]], metadata: Mapping[str, str], path: str = "") -> bytes:
    """A frame shard as Parquet bytes; one row group per element of `groups`. Equal rows give equal bytes.

    JPEGs don't compress, so pages are stored as they are, each with a CRC.

    Args:
        groups: rows as dicts with the columns of `FRAMES_SCHEMA`, already cut into row groups.
        metadata: what the footer tells: plan id and shard.
        path: write to this local file instead, group by group.
    """
    tables = (pa.Table.from_pylist([dict(row) for row in rows], schema=FRAMES_SCHEMA) for rows in groups)
    return _to_bytes(tables, FRAMES_SCHEMA, metadata, path, compression="none", use_dictionary=False)


def write_codes(tables: Iterable[pa.Table], codes_per_clip: int, metadata: Mapping[str, str], path: str = "") -> bytes:
    """A code shard as Parquet bytes; one row group per table. Given a `path`, written there table by table instead."""
    return _to_bytes(tables, codes_schema(codes_per_clip), metadata, path, **_CODES_OPTIONS)


def _to_bytes(
    tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, str], path: str = "", **options: Any
) -> bytes:
    footer = {"evilm.schema_version": str(SCHEMA_VERSION), **{f"evilm.{k}": v for k, v in metadata.items()}}
    sink = io.BytesIO()
    with pq.ParquetWriter(path or sink, schema.with_metadata(footer), write_page_checksum=True, **options) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def read_group(uri: str, group: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of one row group of a shard, page CRCs checked; a read that fails is tried again a few times.

    Raises:
        ShardError: no such file or row group, or its bytes are damaged.
    """

    def read() -> pa.Table:
        with open_shard(uri) as parquet:
            return parquet.read_row_group(group, columns=list(columns))

    for wait in (*_WAITS_S, None):
        try:
            return storage.patiently(uri, read)  # retries what object stores refuse in passing
        except (OSError, pa.ArrowException, IndexError, KeyError) as error:
            cause = error.__cause__ or error
            if wait is not None and isinstance(cause, OSError) and cause.errno in _HICCUPS:
                time.sleep(wait)  # a hiccup of a network drive must not end a training of days
                continue
            reason = str(cause).strip().splitlines()[0]
            raise ShardError(f"cannot read row group {group} of {uri}: {reason}; make the shards again") from None
    raise AssertionError("unreachable")


@contextmanager
def open_shard(uri: str) -> Iterator[pq.ParquetFile]:
    """A shard's file, page CRCs checked; local ones are read by Arrow itself, which needs no lock of Python's."""
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


_EXACT: dict[str, Any] = {"colorspace": "RGB", "fastdct": False, "fastupsample": False}


def decode_frames(jpegs: Sequence[bytes | memoryview], out: np.ndarray | None = None) -> np.ndarray:
    """JPEGs of one size to uint8 RGB, (frame, row, col, 3). The one JPEG decoder of training and of coding.

    Args:
        jpegs: the files' bytes, or views of them.
        out: contiguous, where the pixels go instead of into a new array.
    """
    if out is None:
        side = jpeg_side(jpegs[0])
        out = np.empty((len(jpegs), side, side, 3), np.uint8)
    for jpeg, frame in zip(jpegs, out, strict=True):
        pixels = simplejpeg.decode_jpeg(jpeg, buffer=frame, **_EXACT)
        assert pixels.shape == frame.shape, "the frames of a clip are of one size"
    return out


def jpeg_side(jpeg: bytes | memoryview) -> int:
    """Side of a stored frame, in pixels."""
    return int(simplejpeg.decode_jpeg_header(jpeg)[0])


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
            raise self._missing(uri) from None
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise self._changed(uri, found)
        return data

    @contextmanager
    def open_file(self, folder: str) -> Iterator[pq.ParquetFile]:
        """The file to read in pieces, after checking it as `verify` does; never held in memory as a whole.

        A remote file is copied to a temporary one for as long as the block lasts.
        """
        uri = storage.join(folder, self.file)
        with ExitStack() as stack:
            path = storage.absolute(uri)
            try:
                if not storage.is_local(uri):
                    path = stack.enter_context(storage.temporary(uri))
                    storage.get_file(uri, path)
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                raise self._missing(uri) from None
            if found != self.sha256:
                raise self._changed(uri, found)
            yield stack.enter_context(pq.ParquetFile(path, page_checksum_verification=True))

    @staticmethod
    def _missing(uri: str) -> ShardError:
        return ShardError(f"{uri} is listed in {MANIFEST} but missing; make the shards again")

    @staticmethod
    def _changed(uri: str, found: str) -> ShardError:
        return ShardError(
            f"{uri} was changed after it was written (its SHA-256 is {found[:12]}); make the shards again"
        )


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
    """Rows of the manifest that were considered, good and bad."""
    reasons: dict[str, int]
    """Quarantined rows by reason."""
    flags: dict[str, int] = field(default_factory=dict)
    """Clips by flag: repeated frames, rotated, ..."""
    generations: list[dict[str, Any]] = field(default_factory=list)
    """Plan id and kind of what was planned together, and how many clips: the first rows, rows added, retries."""
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
    """Views coded per clip, the first of them the whole frame."""
    view_spec: dict[str, Any] = field(default_factory=dict)
    """How the other views were drawn and resampled; empty where there are none."""
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
    if codes.num_frames != frames.num_frames:
        raise ShardError(
            f"{codes.uri} holds {codes.num_frames} coded frames per clip, {frames.uri} has {frames.num_frames}; {again}"
        )
    check_num_frames(frames, expect_num_frames or frames.num_frames)
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


def check_num_frames(frames: FrameManifest, num_frames: int) -> None:
    """See that the frames of a model can be picked from those that are stored.

    Raises:
        ShardError: their number does not divide the number of stored frames.
    """
    if frames.num_frames % num_frames:
        raise ShardError(
            f"{frames.uri} holds {frames.num_frames} frames per clip, the model takes {num_frames}, which does not "
            "divide it; set arch.num_frames to a divisor, or make other shards"
        )


def codes_folder(tokenizer_fingerprint: str, num_views: int, view_spec: Mapping[str, Any]) -> str:
    """The name of the folder that holds a tokenizer's codes of these views."""
    if num_views == 1:
        return tokenizer_fingerprint
    return f"{tokenizer_fingerprint}-v{num_views}-{fingerprint(dict(view_spec), 8)}"


def find_codes(codes_uri: str, tokenizer_fingerprint: str, num_views: int = 0, plain: bool = False) -> str:
    """The folder with one tokenizer's codes below `codes_uri`; `codes_uri` where it is one such folder itself.

    Args:
        codes_uri: the `--out` of precompute_codes, or one folder in it.
        tokenizer_fingerprint: whose codes.
        num_views: views per clip that are wanted; 0 takes the most there are.
        plain: only the whole frames are wanted, which all codes hold; takes the smallest.

    Raises:
        ShardError: there are none, saying what there is; or several of as many views, drawn in different ways.
    """
    if storage.exists(storage.join(codes_uri, MANIFEST)):
        found = CodesManifest.load(codes_uri).num_views
        if num_views not in (0, found):
            raise ShardError(f"{codes_uri} holds codes of {found} views per clip, not {num_views}; name another folder")
        return codes_uri.rstrip("/")
    there = [n for n in storage.list_names(codes_uri) if storage.exists(storage.join(codes_uri, n, MANIFEST))]
    views = {name: int(found[2] or 1) for name in there if (found := _CODES_FOLDER.fullmatch(name))}
    views = {name: count for name, count in views.items() if name.split("-v")[0] == tokenizer_fingerprint}
    wanted = num_views or (min if plain else max)(views.values(), default=0)
    fitting = sorted(name for name, count in views.items() if count == wanted)
    if len(fitting) == 1 or (fitting and plain):
        return storage.join(codes_uri, fitting[0])
    if fitting:
        raise ShardError(
            f"{codes_uri} holds codes of {wanted} views drawn in {len(fitting)} ways ({', '.join(fitting)}); "
            f"name one of these folders, --codes {storage.join(codes_uri, fitting[0])}"
        )
    of_views = f" with {num_views} views per clip" if num_views else ""
    views_flag = f" --views {num_views}" if num_views > 1 else ""
    raise ShardError(
        f"{codes_uri} holds no finished codes of tokenizer {tokenizer_fingerprint}{of_views} "
        f"(there: {', '.join(there) or 'none'}); run pipelines/precompute_codes.py --out {codes_uri}{views_flag}"
    )


_CODES_FOLDER = re.compile(r"(.+?)(?:-v(\d+)-[0-9a-f]{8})?")


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
            f"{SCHEMA_VERSION}; make it again with {maker} --overwrite"
        )
    stored = data.pop("fingerprint", "")
    if stored != fingerprint(data):
        raise ShardError(f"{place} was changed after it was written (its fingerprint is not {stored}); make it again")
    data.pop("kind")
    return data
