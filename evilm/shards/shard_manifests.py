"""Manifests of shards: which files belong together, what they hold, and the fingerprint of all."""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import pyarrow.parquet as pq

from evilm.config.base import fingerprint, without
from evilm.errors import ShardError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.io.ownership import published
from evilm.shards.shard_files import READABLE_VERSIONS, SCHEMA_VERSION

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PUBLICATIONS = "publications"
_PINNED = re.compile(r"(.+)@([0-9a-f]{16})")


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
        """Return the file's bytes, after checking that they are the committed ones.

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
        """Open the file to read in pieces, after checking it as `verify` does; never held in memory as a whole.

        A remote file is copied to a temporary one for as long as the block lasts.
        """
        uri = storage.join(folder, self.file)
        with ExitStack() as stack:
            try:
                path = stack.enter_context(storage.local_copy(uri))
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                raise self._missing(uri) from None
            if found != self.sha256:
                raise self._changed(uri, found)
            yield stack.enter_context(pq.ParquetFile(path, page_checksum_verification=True))

    @staticmethod
    def _missing(uri: str) -> ShardError:
        return ShardError(f"{uri} is listed in {MANIFEST} but missing; write the shards again")

    @staticmethod
    def _changed(uri: str, found: str) -> ShardError:
        return ShardError(
            f"{uri} was changed after it was written (its SHA-256 is {found[:12]}); write the shards again"
        )


class _Manifest:
    """A manifest of shards: how it is read and published. Its fingerprint covers all it says, not where it lies."""

    KIND: ClassVar[str]
    COMMAND: ClassVar[str]
    """The command that makes such shards."""
    SHARD: ClassVar[type[ShardInfo]]
    uri: str

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read the manifest of a folder of shards; `uri` is the folder, or `pinned` to one of its publications.

        Raises:
            ShardError: no such shards there, nothing published yet, or another schema version.
        """
        data = _load(uri, cls.KIND, cls.COMMAND)
        data.pop("code_usage", None)
        shards = [cls.SHARD(**shard) for shard in data.pop("shards")]
        return cls(uri=storage.absolute(_unpinned(uri)[0]), shards=shards, **data)  # type: ignore[call-arg]

    def save(self, output: Output | None = None) -> None:
        """Publish the manifest: from now on readers see the shards; `output` is the folder, if a run owns it."""
        _save(self.uri, self._content | {"fingerprint": self.fingerprint}, output)

    @property
    def _content(self) -> dict[str, Any]:
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all the manifest says, every file's SHA-256 included."""
        return fingerprint(self._content)


@dataclass(frozen=True)
class FrameManifest(_Manifest):
    """Contents of a folder of frame shards."""

    KIND, COMMAND, SHARD = "frames", "pipelines/shard_videos.py", ShardInfo
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
    num_captions: int = 0
    """Captions of all clips; 0 in manifests of before clips had several."""
    generations: list[dict[str, Any]] = field(default_factory=list)
    """Plan id and kind of what was planned together, and how many clips: the first rows, rows added, retries."""
    num_missing: int = 0
    """Shards that are planned and were not there yet when this was published; later publications hold more."""
    schema_version: int = SCHEMA_VERSION

    @property
    def _content(self) -> dict[str, Any]:
        later = ["num_captions"] if self.schema_version < 3 else []
        later += [] if self.num_missing else ["num_missing"]
        return {"kind": "frames"} | without(asdict(self), ["uri", *later])

    def of_split(self, split: str) -> list[ShardInfo]:
        """Return the shards of a split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def num_clips(self, split: str | None = None) -> int:
        """Return the number of clips of a split, or of all."""
        return sum(shard.num_clips for shard in self.shards if split in (None, shard.split))

    @property
    def splits(self) -> dict[str, int]:
        """Return the number of clips by split."""
        return {split: self.num_clips(split) for split in sorted({shard.split for shard in self.shards})}


@dataclass(frozen=True)
class CodeShardInfo(ShardInfo):
    """One file of a codes manifest, and the frame shard that it codes."""

    frames_file: str
    frames_sha256: str


@dataclass(frozen=True)
class CodesManifest(_Manifest):
    """Contents of a folder of code shards: the codes of one tokenizer on one set of frame shards."""

    KIND, COMMAND, SHARD = "codes", "pipelines/precompute_codes.py", CodeShardInfo
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
    """Settings that drew and resampled the other views; empty without other views."""
    schema_version: int = SCHEMA_VERSION

    @property
    def _content(self) -> dict[str, Any]:
        return {"kind": "codes", "code_usage": self.code_usage} | without(asdict(self), ["uri"])

    @property
    def code_usage(self) -> dict[str, float]:
        """Return by split the share of the codebook used at least once. Paper: VOC. RATE, Table 6."""
        return {
            split: round(sum(count > 0 for count in histogram) / self.num_codes, 6)
            for split, histogram in self.histograms.items()
        }

    @property
    def codes_per_clip(self) -> int:
        """Return the codes stored for a clip: views x frames x grid x grid."""
        return self.num_views * self.num_frames * self.grid**2


def find_lost(manifest: FrameManifest | CodesManifest) -> list[str]:
    """List the files of a manifest that are missing from its folder, and log one of them."""
    there = set(storage.list_names(manifest.uri))
    lost = [shard.file for shard in manifest.shards if shard.file not in there]
    if lost:
        logger.info("%d shards are missing from %s, e.g. %s; writing them again", len(lost), manifest.uri, lost[0])
    return lost


def pinned(uri: str, fingerprint: str) -> str:
    """Name a folder of shards as it was when its manifest had this fingerprint, whatever was added since."""
    return f"{_unpinned(uri)[0].rstrip('/')}@{fingerprint}"


def is_published(uri: str, fingerprint: str) -> bool:
    """Check whether a publication of a folder of shards can still be read."""
    return storage.exists(storage.join(uri, _PUBLICATIONS, f"{fingerprint}.json"))


def _unpinned(uri: str) -> tuple[str, str]:
    """Split a pinned place into folder and fingerprint; '' as fingerprint of any other place."""
    match = _PINNED.fullmatch(uri)
    return (match[1], match[2]) if match else (uri, "")


def _save(uri: str, content: dict[str, Any], output: Output | None) -> None:
    if output is None:
        storage.write_json(storage.join(uri, MANIFEST), content)
        return
    output.check()
    storage.write_json(storage.join(uri, _PUBLICATIONS, f"{content['fingerprint']}.json"), content)
    output.publish(MANIFEST, content)


def _load(uri: str, kind: str, command: str) -> dict[str, Any]:
    """Load a manifest's content, checked for kind, schema version and damage."""
    uri, pin = _unpinned(uri)
    place, data = storage.join(uri, MANIFEST), published(uri, MANIFEST)
    if pin and (data or {}).get("fingerprint") != pin:
        place = storage.join(uri, _PUBLICATIONS, f"{pin}.json")
        if not storage.exists(place):
            raise ShardError(
                f"{uri} no longer holds the {kind} with fingerprint {pin}; use {uri} without @{pin}, or restore {place}"
            )
        data = storage.read_json(place)
    if data is None:
        raise ShardError(f"no finished {kind} at {uri} ({MANIFEST} is missing); run {command} --out {uri}")
    found = (data.get("kind"), data.get("schema_version")) if isinstance(data, dict) else (None, None)
    if found[0] != kind or found[1] not in READABLE_VERSIONS:
        raise ShardError(
            f"{place} is of kind {found[0]!r}, schema version {found[1]!r}; this version reads {kind!r}, "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; rebuild it with {command} --overwrite"
        )
    stored = data.pop("fingerprint", "")
    if stored != fingerprint(data):
        raise ShardError(f"{place} was changed after it was written (its fingerprint is not {stored}); rebuild it")
    data.pop("kind")
    return data
