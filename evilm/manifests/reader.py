"""Manifests of every format and layout, read as one stream of clips: tables, and tars of clips."""

import hashlib
import logging
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from evilm.config.stages import ShardVideos
from evilm.errors import ConfigError, ManifestError, StorageError
from evilm.io import storage
from evilm.manifests.layouts import KEY, ColumnRoles, assign
from evilm.manifests.manifest_files import common_folder, is_tar, list_manifests, names_of
from evilm.manifests.records import ParseError, open_table
from evilm.manifests.rows import SPLIT, BadRow, ClipRow, Context, VideoLocation, clips_of
from evilm.manifests.tars import Sample, merge_samples, read_tar
from evilm.prefetch import map_ahead
from evilm.video.reasons import RejectReason
from evilm.video.urls import flat_name, is_url

logger = logging.getLogger(__name__)

_Samples: TypeAlias = list[Sample | ParseError]
_DIGITS = re.compile(r"\d+")
_HASHED_BYTES = 1 << 22


def read_manifests(config: ShardVideos) -> Iterator[ClipRow | BadRow]:
    """Yield every clip of the manifests, or the reason to reject a row, in the order of files and records.

    A stream: one record, one batch of Parquet or the headers of a few tars are held at a time. Ids may repeat, and
    no file is looked for.

    Raises:
        ManifestError: a manifest that can't be read, or lacks a column that is needed.
        ConfigError: settings that don't fit the manifests.
    """
    if not SPLIT.fullmatch(config.split):
        raise ConfigError(f"split = {config.split!r}; use up to 100 letters, digits, '_', '-' and '.'")
    uris = list_manifests(config.manifest)
    root = _root(config, uris)
    sources = names_of(uris) if len(uris) > 1 else [""]
    prefixes = _IdPrefixes(config, uris, root)
    left, num_records = config.limit or None, 0
    known = prefixes.first_tars
    tars = map_ahead(lambda uri: known.pop(uri, None) or _samples_of(uri, root), uris, config.fetch.concurrency)
    for uri, source, samples in zip(uris, sources, tars, strict=True):
        before, read = num_records, _table_rows
        if is_tar(uri):
            read = partial(_tar_rows, id_prefix=prefixes.of(uri, source, samples or []))
        for number, rows in read(config, uri, source, root, samples):
            yield from rows
            num_records += number > 0
            if left is not None and num_records >= left:
                tars.close()
                return
        if num_records == before:
            logger.warning("%s has a header and no rows", uri)
    if not num_records:
        raise ManifestError(f"{config.manifest} has a header and no rows; nothing to do")


class _IdPrefixes:
    """Prefixes of the ids of each tar: the tar's name if keys are unique only within it, else ''.

    That is so for all tars if no column of ids is asked for, or if the second one repeats keys of the first; else for
    a tar that repeats keys of an earlier one, and those after it that differ from it in numbers only.
    """

    def __init__(self, config: ShardVideos, uris: Sequence[str], root: str) -> None:
        self._videoid, tars = config.columns.videoid, [uri for uri in uris if is_tar(uri)][:2]
        self._firsts, self._series, self._counted = set[str](), set[str](), set[str]()
        self.first_tars: dict[str, _Samples | None] = {}
        """Samples of the first two tars, which are compared before the others are read."""
        if len(tars) == 2 and self._videoid != "":
            samples = map_ahead(partial(_samples_of, root=root), tars, len(tars))
            self.first_tars = dict(zip(tars, samples, strict=True))
        self._compared = set(self.first_tars)
        repeats = any(self._repeats(samples or []) for samples in self.first_tars.values())
        if repeats:
            logger.info("%s and %s have the same keys: ids are made of tar and key", *tars)
        self._is_for_all = self._videoid == "" or repeats

    def of(self, uri: str, source: str, samples: _Samples) -> str:
        """Return the prefix of a tar; to be asked in the order of the tars, so that none depends on later ones."""
        name = (source or posixpath.basename(uri)).rpartition(".")[0]
        series = _DIGITS.sub("", name)
        if not self._is_for_all and self._videoid is None and uri not in self._compared and self._repeats(samples):
            if series not in self._series:
                logger.info("%s has keys of an earlier tar: its ids are made of tar and key", uri)
            self._series.add(series)
        return f"{flat_name(name)}_" if self._is_for_all or series in self._series else ""

    def _repeats(self, samples: _Samples) -> bool:
        """Check whether a tar begins with the key of an earlier one, or has most of the keys counted in the first."""
        keys = [sample.key for sample in samples if isinstance(sample, Sample)]
        shared = self._counted.intersection(keys) if self._videoid is None else set[str]()
        is_counted = len(shared) > max(1, min(len(keys), len(self._counted)) / 2) and _are_counted(shared)
        found = is_counted or not self._firsts.isdisjoint(keys[:1])
        self._counted = self._counted or set(keys)
        self._firsts.update(keys[:1])
        return found


def _are_counted(keys: Collection[str]) -> bool:
    """Guess whether keys were counted: they differ in numbers only, which are close together. Ids of videos do not."""
    numbers = [float("".join(_DIGITS.findall(key)) or 0) for key in keys]
    return len({_DIGITS.sub("", key) for key in keys}) == 1 and max(numbers) - min(numbers) < 10 * len(keys)


def fingerprint_of_manifests(config: ShardVideos) -> str:
    """Compute a digest of the manifests' contents, wherever they lie: tables' bytes; tars' name, size, ETag or time.

    Raises:
        ManifestError: one can't be read.
    """
    uris = list_manifests(config.manifest)
    digests = [_digest(uri, name) for uri, name in zip(uris, names_of(uris), strict=True)]
    return (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())[:16]


def videos_root(config: ShardVideos) -> str:
    """Return where paths of clips begin: --videos, the folder of the tars, or '' where all clips are URLs.

    Raises:
        ConfigError: there is no such folder, or one is needed and not named.
    """
    return _root(config, list_manifests(config.manifest))


def _root(config: ShardVideos, uris: Sequence[str]) -> str:
    if config.videos:
        if is_url(config.videos):
            raise ConfigError(
                f"--videos {config.videos} is a URL; give a folder or s3://, and --fetch.urls to download clips"
            )
        root = storage.absolute(config.videos)
        if storage.is_local(root) and not storage.exists(root):
            raise ConfigError(f"--videos {config.videos}: there is no such folder")
        return root
    if all(is_tar(uri) for uri in uris) or (uris[0].endswith(".parquet") and storage.exists(_tar_beside(uris[0]))):
        return common_folder(uris)
    if config.fetch.urls or config.columns.path:
        return ""
    raise ConfigError("--videos is missing; name the folder of the videos, or --fetch.urls to download them")


def _tar_rows(
    config: ShardVideos, uri: str, source: str, root: str, samples: _Samples | None, id_prefix: str = ""
) -> Iterator[tuple[int, Iterator[ClipRow | BadRow]]]:
    """Yield the clips of a tar: what its samples say as records."""
    assert samples is not None
    name = _below(uri, root)
    if name is None:
        raise ConfigError(f"{uri} lies outside of --videos {root}; leave --videos out for tars")
    header = dict.fromkeys(key for sample in samples if isinstance(sample, Sample) for key in sample.values)
    if not header:
        faults = [sample.detail for sample in samples if isinstance(sample, ParseError)]
        yield (
            1,
            iter([BadRow(0, "", RejectReason.BAD_ROW, f"{name}: {'; '.join(faults) or 'no samples'}", source=source)]),
        )
        return
    columns = config.columns
    if columns.videoid == "":  # ids are made of tar and key
        columns = columns.model_copy(update={"videoid": KEY})
    roles = assign(list(header), columns, uri)
    context = replace(_context(config, roles, root, source), id_prefix=id_prefix)
    for number, sample in enumerate(samples, start=1):
        if isinstance(sample, ParseError):
            yield 1, iter([BadRow(0, "", RejectReason.BAD_ROW, f"{name}: {sample.detail}", source=source)])
        else:
            record = ParseError(sample.fault, sample.values) if sample.fault else sample.values
            yield number, clips_of(number, record, replace(context, members=_members([sample], name)))


def _table_rows(
    config: ShardVideos, uri: str, source: str, root: str, samples: _Samples | None
) -> Iterator[tuple[int, Iterator[ClipRow | BadRow]]]:
    """Yield the clips of a table, one record at a time."""
    with open_table(uri) as table:
        roles = assign(table.header, config.columns, uri)
        context = replace(_context(config, roles, root, source), urls=config.fetch.urls)
        if roles.layout == "video2dataset":
            context = _of_video2dataset(context, uri, samples)
            for fault in (sample for sample in samples or [] if isinstance(sample, ParseError)):
                detail = f"{_below(_tar_beside(uri), root)}: {fault.detail}"
                yield 0, iter([BadRow(0, "", RejectReason.BAD_ROW, detail, source=source)])
        for number, record in enumerate(table.records, start=1):
            yield number, clips_of(number, record, context)


def _context(config: ShardVideos, roles: ColumnRoles, root: str, source: str) -> Context:
    shares = {"test": config.test_share, "val": config.val_share}
    return Context(roles, config.split, root, source=source, shares=shares, seed=config.sampling.seed)


def _of_video2dataset(context: Context, uri: str, samples: _Samples | None) -> Context:
    """Return where the videos of a table that video2dataset wrote are: in the tar or the folder of the same name."""
    folder = _below(uri.rpartition(".")[0], context.root) or posixpath.basename(uri).rpartition(".")[0]
    if samples is None:
        return replace(context, folder=folder)
    return replace(context, members=_members(samples, f"{folder}.tar"))


def _members(samples: Iterable[Sample | ParseError], name: str) -> dict[str, VideoLocation]:
    """Return where the video of each sample is; of equal keys the first one counts."""
    members: dict[str, VideoLocation] = {}
    for sample in samples:
        if isinstance(sample, Sample) and sample.member:
            place = VideoLocation(f"{name}/{sample.member}", offset=sample.offset, num_bytes=sample.num_bytes)
            members.setdefault(sample.values[KEY], place)
    return members


def _samples_of(uri: str, root: str) -> _Samples | None:
    """Read the samples of a tar, or of the tar beside a table that video2dataset wrote; None if there is no tar."""
    if not is_tar(uri):
        uri = _tar_beside(uri) if uri.lower().endswith(".parquet") and _below(uri, root) else ""
        if not uri or not storage.exists(uri):
            return None
    return list(merge_samples(read_tar(uri)))


def _tar_beside(uri: str) -> str:
    return uri.rpartition(".")[0] + ".tar"


def _below(uri: str, root: str) -> str | None:
    """Return the path of a file below the root; None if it is outside."""
    prefix = root.rstrip("/") + "/"
    return uri[len(prefix) :] if root and uri.startswith(prefix) else None


def _digest(uri: str, name: str) -> str:
    try:
        if is_tar(uri):
            fs, path = storage.resolve(uri)
            info: dict[str, Any] = storage.with_retries(uri, lambda: fs.info(path))
            version = info.get("ETag") or info.get("mtime") or ""  # a tar that is written anew may keep its size
            return hashlib.sha256(f"{name}:{info['size']}:{version}".encode()).hexdigest()
        digest = hashlib.sha256()
        with storage.open_file(uri, _HASHED_BYTES) as file:
            while data := file.read(_HASHED_BYTES):
                digest.update(data)
        return digest.hexdigest()
    except StorageError:
        raise
    except OSError as error:
        raise ManifestError(
            f"cannot read {uri} ({error.strerror or type(error).__name__}); give CSV, TSV, JSON lines, Parquet or tars"
        ) from None
