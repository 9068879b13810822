"""From a record of a manifest to clips. What can't become a clip is quarantined with its reason, not dropped."""

import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from unicodedata import ucd_3_2_0 as unicode

from evilm.config.secrets import public_text, public_uri, stored_text, unsigned
from evilm.manifests.caption_text import Rejected, usable_captions
from evilm.manifests.layouts import KEY, ColumnRoles
from evilm.manifests.lists import parse_list
from evilm.manifests.records import ParseError, as_split, as_text, is_text
from evilm.manifests.spans import Span, parse_span, show_seconds
from evilm.manifests.video_paths import check_path, path_below
from evilm.seeds import hash64
from evilm.video.reasons import RejectReason
from evilm.video.urls import flat_name, is_url, without_ending

SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Splits become parts of file names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRow:
    """A row that can become a clip."""

    source: str = ""
    """Manifest that the row is from, below the common folder of all; '' where there is one only."""
    record: int
    """Record of that manifest, counted from 1 after the header."""
    clip_id: str
    split: str
    captions: tuple[str, ...]
    path: str
    """Location of the video: below the video root, an http(s) URL, or `some.tar/member`."""
    needs_ending: bool = False
    """True if `path` lacks the ending of the file."""
    offset: int = -1
    """Offset of the video in its tar; -1 for a file of its own."""
    num_bytes: int = -1
    """Size of the video in its tar; -1 for a file of its own."""
    start_s: float | None = None
    """Start of the clip in its video; None for the video's start."""
    end_s: float | None = None
    """End of the clip in its video; None for the video's end."""
    url: str = ""
    """URL to download the video from if there is no file at `path`."""
    extra: dict[str, str] = field(default_factory=dict)
    """Columns that are not fields of a clip."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A quarantined row."""

    record: int
    clip_id: str
    reason: RejectReason
    detail: str = ""
    split: str = ""
    path: str = ""
    """Location of the video, found or not, without the secrets of a URL."""
    source: str = ""


@dataclass(frozen=True, slots=True)
class VideoLocation:
    """Location of a video: the fields of a `ClipRow`."""

    path: str
    needs_ending: bool = False
    offset: int = -1
    num_bytes: int = -1
    url: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """Settings that all rows of one manifest share."""

    roles: ColumnRoles
    split: str
    """Split of rows that name none and are in no share."""
    root: str
    """Folder that paths are relative to; '' for none."""
    urls: bool = False
    """True if videos may be downloaded from the URL column."""
    source: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of source videos that go to each other split, of the rows that name no split."""
    seed: int = 0
    id_prefix: str = ""
    """Prefix of every id, for tars whose keys repeat."""
    folder: str = ""
    """Folder of the videos if no column names it."""
    members: Mapping[str, VideoLocation] | None = None
    """Location of each key's video if all are in one tar; for a tar's sample only its own, as keys may repeat."""


def clips_of(number: int, record: Mapping[str, Any] | ParseError, context: Context) -> Iterator[ClipRow | BadRow]:
    """Yield the clips of a record, mostly one; for each unusable one, its first fault."""
    roles = context.roles
    values = record.values if isinstance(record, ParseError) else record
    texts = {name: as_text(value) for name, value in values.items() if name}
    clip_id, split, path = texts.get(roles.videoid, "").strip(), "", ""
    try:
        if not is_text("".join((*texts, *texts.values()))):
            raise Rejected(RejectReason.BAD_ROW, "not UTF-8")
        if isinstance(record, ParseError):
            raise Rejected(RejectReason.BAD_ROW, record.detail)
        clip_id = clip_id or _id_from_place(texts, roles)
        named = as_split(texts.get(roles.split, ""))
        given = named or context.split
        if not SPLIT.fullmatch(given):
            raise Rejected(RejectReason.BAD_ROW, f"split {public_text(given)[:100]!r}")
        split = given
        if "/" in clip_id:
            raise Rejected(RejectReason.PATH_UNSAFE, "'/' in the id")
        if any(unicode.category(character) == "Cc" for character in clip_id):
            raise Rejected(RejectReason.BAD_ROW, "a control character in the id")
        clip_id = context.id_prefix + clip_id
        place = _place(clip_id, record, texts, context)
        path = public_uri(place.path)
        split = split if named else _split_of(place, record, texts, context)
        yield from _spans(number, clip_id, split, place, record, texts, context)
    except Rejected as refused:
        yield _bad(number, clip_id, refused, split, path, context)


def _id_from_place(texts: Mapping[str, str], roles: ColumnRoles) -> str:
    """Make the id of a row without a column of ids: its path without ending, or a digest of its URL."""
    if not roles.videoid:
        if key := texts.get(KEY, ""):
            return key
        path, url = texts.get(roles.path, "").strip(), texts.get(roles.url, "").strip()
        if path and not is_url(path):
            return flat_name(posixpath.normpath(without_ending(path)).strip("/"))
        if path or url:
            return hashlib.blake2b(unsigned(path or url, fragment=True).encode(), digest_size=8).hexdigest()
    raise Rejected(RejectReason.MISSING_ID)


def _split_of(place: VideoLocation, record: Mapping[str, Any], texts: Mapping[str, str], context: Context) -> str:
    """Draw the split of a source video by a hash of where it lies, so that all its clips are on one side."""
    roles = context.roles
    source = without_ending(place.path) if place.needs_ending else place.path  # ids of one file with and without it
    has_pair = bool(roles.start) and not roles.end and _is_pair(parse_list(record.get(roles.start)))
    is_tar = roles.layout == "webdataset"  # video2dataset writes there what it writes to tables
    if (has_pair and place.needs_ending) or ((is_tar or roles.layout == "video2dataset") and texts.get("clips")):
        source = texts.get(roles.url or ("url" if is_tar else ""), "").strip() or source  # of clips that are cut
    drawn = hash64(f"split\0{context.seed}\0{unsigned(source)}".encode()) / 2**64
    for split, share in context.shares.items():
        if drawn < share:
            return split
        drawn -= share
    return context.split


def _place(clip_id: str, record: Mapping[str, Any], texts: Mapping[str, str], context: Context) -> VideoLocation:
    """Return where the video of a row is."""
    roles = context.roles
    if roles.layout == "video2dataset" and (status := texts.get("status", "success")) != "success":
        message = public_text(texts.get("error_message", ""))[:200]
        raise Rejected(RejectReason.MISSING_FILE, f"video2dataset says {public_text(status)[:100]}: {message}")
    clip_id = clip_id.removeprefix(context.id_prefix)
    name = texts.get(KEY) or (texts.get("key", "") if roles.layout == "video2dataset" else "") or clip_id
    if context.members is not None:
        if name not in context.members:
            raise Rejected(RejectReason.MISSING_FILE, "no video of that name in its tar")
        return context.members[name]
    url = texts.get(roles.url, "").strip() if context.urls else ""
    path = texts.get(roles.path, "").strip()
    if is_url(path):
        check_path(path)
        return VideoLocation(path)
    if not context.root:
        if not url:
            detail = "no URL" if context.urls else "a path below --videos, which is not given"
            raise Rejected(RejectReason.MISSING_FILE, detail)
        check_path(url)
        return VideoLocation(url)
    if roles.path:
        if not path and not url:
            raise Rejected(RejectReason.MISSING_FILE, "no path")
        if path:
            return VideoLocation(path_below(path, context.root), url=url)
        check_path(url)
        return VideoLocation(url)
    folder = texts.get(roles.page_dir, "").strip() if roles.page_dir else context.folder
    return VideoLocation(path_below(f"{folder}/{name}" if folder else name, context.root), needs_ending=True, url=url)


def _spans(
    number: int,
    clip_id: str,
    split: str,
    place: VideoLocation,
    record: Mapping[str, Any],
    texts: Mapping[str, str],
    context: Context,
) -> Iterator[ClipRow | BadRow]:
    """Yield one clip for each span, or one of the whole video if the manifest has no spans."""
    roles = context.roles
    extra = {name: text for name, text in texts.items() if name not in roles.used}
    if roles.layout == "webdataset" and extra.get("caption") == texts.get(roles.caption):
        extra.pop("caption", None)  # a .json that repeats its .txt
    extra = {
        name: (public_text if name in (roles.url, roles.path) else stored_text)(text) for name, text in extra.items()
    }
    value = record.get(roles.caption)

    def clip(clip_id: str, span: Span, captions: Any, extra: dict[str, str]) -> ClipRow:
        return ClipRow(
            source=context.source,
            record=number,
            clip_id=clip_id,
            split=split,
            captions=usable_captions(captions),
            start_s=span[0],
            end_s=span[1],
            extra=extra,
            **asdict(place),
        )

    pairs = _pairs(record, roles)
    if pairs is None or _is_pair(pairs):  # one start and one end
        span: Span = (None, None)
        if roles.start or roles.end:
            span = _span(*(pairs or (record.get(roles.start), record.get(roles.end))))
        if span != (None, None) and (not pairs or roles.layout != "koala"):  # which has ids of clips
            clip_id = f"{clip_id}_{show_seconds(span[0] or 0)}_{'end' if span[1] is None else show_seconds(span[1])}"
        yield clip(clip_id, span, value, extra)
        return
    captions = parse_list(value) or [value] * len(pairs)
    if not pairs or len(captions) != len(pairs):
        reason = RejectReason.BAD_ROW if pairs else RejectReason.BAD_SPAN
        raise Rejected(reason, f"{len(captions)} captions for {len(pairs)} spans")
    lists = {name: items for name in extra if (items := parse_list(record[name])) and len(items) == len(pairs)}
    for n, (pair, caption) in enumerate(zip(pairs, captions, strict=True)):
        own = {name: stored_text(as_text(lists[name][n])) if name in lists else text for name, text in extra.items()}
        try:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise Rejected(RejectReason.BAD_SPAN, f"no [start, end]: {public_text(str(pair))[:60]!r}")
            yield clip(f"{clip_id}_{n}", _span(*pair), caption, own)
        except Rejected as refused:
            yield _bad(number, f"{clip_id}_{n}", refused, split, public_uri(place.path), context)


def _is_pair(values: list[Any] | None) -> bool:
    return values is not None and len(values) == 2 and not any(isinstance(item, list | tuple) for item in values)


def _pairs(record: Mapping[str, Any], roles: ColumnRoles) -> list[Any] | None:
    """Return the [start, end] pairs of a record: a list of them, or lists of starts and of ends; None for neither."""
    starts = parse_list(record.get(roles.start)) if roles.start else None
    if starts is None or not roles.end:
        return starts
    ends = parse_list(record.get(roles.end)) or []
    if len(starts) != len(ends):
        raise Rejected(RejectReason.BAD_SPAN, f"{len(starts)} starts and {len(ends)} ends")
    return list(zip(starts, ends, strict=True))


def _span(start: Any, end: Any) -> Span:
    try:
        return parse_span(start, end)
    except ValueError as error:
        raise Rejected(RejectReason.BAD_SPAN, str(error)) from None


def _bad(number: int, clip_id: str, refused: Rejected, split: str, path: str, context: Context) -> BadRow:
    # A column of URLs may be taken for that of ids or splits.
    clip_id, detail = (public_text(text.encode(errors="replace").decode()) for text in (clip_id, refused.detail))
    return BadRow(number, clip_id, refused.reason, detail, split, path, context.source)
