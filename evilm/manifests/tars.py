"""WebDataset tars read in place: where each video lies, and what is said about it. Only headers and texts are read."""

import json
import tarfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Self

from evilm.config.data import VIDEO_ENDINGS
from evilm.errors import ManifestError, StorageError
from evilm.io import storage
from evilm.manifests.layouts import KEY
from evilm.manifests.records import ParseError, is_text
from evilm.video.urls import flat_name

_TEXT_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16  # one range read gives a sample's texts and the next header
_NAME_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_NO_TAR = "bytes that are no tar follow its end mark,"
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError)
"""What headers raise that hold numbers that are none, or that follow each other without end."""


@dataclass(slots=True)
class Sample:
    """The members of a tar that share a key, in the order in which they lie there."""

    key: str
    values: dict[str, Any] = field(default_factory=dict)
    """The keys of its .json, its .txt (else its caption, once samples are joined) as `txt`, and its key."""
    member: str = ""
    """Name of the video; '' where the sample has none."""
    offset: int = -1
    num_bytes: int = -1
    num_members: int = 0
    fault: str = ""


def read_tar(uri: str) -> Iterator[Sample | ParseError]:
    """Yield the samples of a tar. One that was cut off gives the whole samples before the cut and a `ParseError`.

    Raises:
        ManifestError: no such file, or no tar that can be read in place.
    """
    try:
        with storage.open_file(uri, _BLOCK_BYTES) as file:
            head = file.read(512)
            if head[:2] == b"\x1f\x8b":
                raise ManifestError(f"{uri} is a compressed tar; unpack it to .tar, videos gain nothing from gzip")
            if not head:
                yield ParseError("an empty tar")
                return
            file.seek(0)
            yield from _samples(file)
    except FileNotFoundError:
        raise ManifestError(f"no tar at {uri}") from None
    except StorageError:
        raise
    except OSError as error:
        raise ManifestError(f"cannot read {uri}: {error.strerror or type(error).__name__}") from None


def merge_samples(samples: Iterable[Sample | ParseError]) -> Iterator[Sample | ParseError]:
    """Join samples of one key of which one has only the video and another only what is said about it.

    Their members do not follow each other in the tar, as in one that was packed ending by ending. Samples of a key with
    several videos stay apart, as nothing tells which one a text is of. Ids that two keys share get a digest of the key.
    """
    found, parts = list(samples), dict[str, list[Sample]]()
    num_videos = Counter(sample.key for sample in found if isinstance(sample, Sample) and sample.member)
    for sample in found:
        if isinstance(sample, Sample) and not sample.fault and not (sample.member and len(sample.values) > 1):
            parts.setdefault(sample.key, []).append(sample)
    gone = set[int]()
    for first, *others in parts.values():
        for other in others:
            if num_videos[first.key] > 1 or first.values.keys() & other.values.keys() - {KEY}:
                continue
            first.values |= other.values
            if other.member:
                first.member, first.offset, first.num_bytes = other.member, other.offset, other.num_bytes
            first.num_members += other.num_members
            gone.add(id(other))
    keys = dict[str, set[str]]()
    for sample in found:
        if isinstance(sample, Sample):
            keys.setdefault(sample.values[KEY], set()).add(sample.key)
    for sample in found:
        if id(sample) in gone:
            continue
        if isinstance(sample, Sample):
            if len(keys[sample.values[KEY]]) > 1:  # a/b and a_b
                sample.values[KEY] = flat_name(sample.key)
            if "caption" in sample.values:
                sample.values.setdefault("txt", sample.values["caption"])
        yield sample


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name into key and ending: all before, and from, the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return f"{folder}{slash}{stem}", (dot + ending).lower()


def _samples(file: IO[bytes]) -> Iterator[Sample | ParseError]:
    """Yield samples in the order of their members; the last one before a cut only if it is complete."""
    sample, count, usual, problem = None, 0, 1, _BadMember()
    for member in _members(file, problem):
        name = member.name.removeprefix("./")
        key, ending = split_key(name)
        if not key.rpartition("/")[2]:
            continue  # .DS_Store and the like
        if sample is None or key != sample.key:
            if sample is not None:
                count, usual = count + 1, sample.num_members
                yield sample
            sample = Sample(key, {KEY: key.replace("/", "_")})
        sample.num_members += 1
        _take(sample, name, ending, member, file)
    is_whole = not problem.text or (problem.key not in ("", getattr(sample, "key", "")))
    if sample is not None and (is_whole or (not problem.key and sample.num_members >= usual)):
        count += 1
        yield sample
    if problem.text:
        yield ParseError(f"{problem.text} after {count} samples")


@dataclass(slots=True)
class _BadMember:
    """An error in a tar, with the key of the member where it was found."""

    text: str = ""
    key: str = ""


class _Header(tarfile.TarInfo):
    """A header whose sizes can be true. Long names and the like are read into memory, whatever size they say."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _NAME_TYPES and header.size > _TEXT_BYTES):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def _members(file: IO[bytes], problem: _BadMember) -> Iterator[tarfile.TarInfo]:
    """Yield the complete members of a tar, and of others that were appended to it by `cat`, without
    folders; why there are no more is left in `problem`."""
    size, begin = file.seek(0, 2), 0
    while begin is not None and not problem.text:
        file.seek(begin)
        begin = yield from _members_of_one(file, size, problem)


def _members_of_one(file: IO[bytes], size: int, problem: _BadMember) -> Generator[tarfile.TarInfo, None, int | None]:
    """Yield the members of the tar that begins at the position of `file`; return where the next one begins, or None."""
    begin = file.tell()
    try:
        tar = tarfile.TarFile(fileobj=file, tarinfo=_Header)
    except _DAMAGED:
        problem.text = _NO_TAR if begin else "no tar, or its first header is damaged:"
        return None
    try:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if member.offset_data + member.size > size:
                problem.text, problem.key = "the tar was cut off", split_key(member.name.removeprefix("./"))[0]
                return None
            if member.size < 0:
                raise tarfile.ReadError(f"{member.size} bytes")
            if not member.isdir():
                yield member
    except _DAMAGED:
        problem.text = "the tar has a damaged header"
        return None
    file.seek(tar.offset)
    rest = file.read(512)
    if len(rest) < 512:
        problem.text = "the tar was cut off, it has no end mark"
    elif any(rest):
        problem.text = "the tar has a damaged header" if tar.offset > begin else _NO_TAR
    else:
        return _after_zeros(file)
    return None


def _after_zeros(file: IO[bytes]) -> int | None:
    """Return where the next block that is not empty begins; None where only zeros follow."""
    while data := file.read(_BLOCK_BYTES):
        if any(data):
            first = len(data) - len(data.lstrip(b"\0"))
            return file.tell() - len(data) + first // 512 * 512
    return None


def _take(sample: Sample, name: str, ending: str, member: tarfile.TarInfo, file: IO[bytes]) -> None:
    """Add a member to its sample."""
    is_video = any(ending.endswith(known) for known in VIDEO_ENDINGS)
    if (is_video or ending in (".txt", ".json")) and (not member.isreg() or member.issparse()):
        sample.fault = f"{name[-100:]} is a link, a device or has holes; it can't be read in place"
    elif not is_text(name):
        sample.fault = "the name of a member is not UTF-8"
    elif is_video:
        if sample.member and not sample.fault:
            sample.fault = f"two videos: {sample.member[-100:]} and {name[-100:]}"
        sample.member, sample.offset, sample.num_bytes = name, member.offset_data, member.size
    elif ending in (".txt", ".json"):
        if member.size > _TEXT_BYTES:
            sample.fault = f"{ending} of {member.size} bytes"
            return
        file.seek(member.offset_data)
        text = file.read(member.size).decode("utf-8-sig", errors="surrogateescape")
        if ending == ".txt":
            sample.values["txt"] = text
            return
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            sample.values = values | sample.values
        else:
            sample.fault = "its .json holds no JSON object"
