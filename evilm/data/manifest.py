"""Manifests: a CSV of clips, checked row by row. What can't become a clip is put aside with its reason, not dropped."""

import csv
import io
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from evilm import storage
from evilm.config.data import ColumnsConfig
from evilm.errors import ConfigError, ManifestError
from evilm.video.reasons import Reason

logger = logging.getLogger(__name__)

ENDINGS = (
    ".mp4",
    ".webm",
    ".mkv",
    ".mov",
    ".avi",
    ".gif",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".ogv",
    ".wmv",
    ".3gp",
)
"""Endings that a video may have; where several fit an id, the first one wins."""
_SPLIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_JOINERS = "\u200c\u200d"
"""Format characters that change what is read: Persian words and joined emoji need them."""
_LISTING_THREADS = 16

csv.field_size_limit(1 << 24)  # the default refuses captions above 128 KiB with an exception


@dataclass(frozen=True, slots=True)
class ClipRow:
    """A row that can become a clip."""

    record: int
    """Record of the CSV, counted from 1 after the header."""
    clip_id: str
    split: str
    caption: str
    folder: str
    """Folder below the video root, '' for the root itself."""
    path: str
    """Path below the video root; '' until the file is found."""
    extra: dict[str, str] = field(default_factory=dict)
    """The columns that we have no use for."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row put aside."""

    record: int
    clip_id: str
    reason: Reason
    detail: str = ""
    split: str = ""
    path: str = ""


def read_manifest(
    data: bytes, name: str, columns: ColumnsConfig, split: str, limit: int = 0
) -> tuple[list[ClipRow], list[BadRow]]:
    """The rows of a CSV (a TSV where `name` ends in .tsv), good and bad, in order.

    Args:
        data: the file's bytes.
        name: the file's name, for messages.
        split: split of rows that name none.
        limit: read only so many records; 0 reads all.

    Raises:
        ManifestError: no header, or a column that is needed is missing.
    """
    if not _SPLIT.fullmatch(split):
        raise ConfigError(f"split = {split!r}; use letters, digits, '_', '-' and '.'")
    records = _records(data, "\t" if name.endswith(".tsv") else ",")
    header = next(records, None)
    if not isinstance(header, list):
        raise ManifestError(f"{name} is empty; expected a CSV with a header line")
    places = _places([column.strip() for column in header], columns, name)
    good, bad = [], []
    for number, record in enumerate(records, start=1):
        if limit and number > limit:
            break
        row = _check(number, record, header, places, split)
        (good if isinstance(row, ClipRow) else bad).append(row)
    if not good and not bad:
        raise ManifestError(f"{name} has a header and no rows; nothing to do")
    return good, bad


def find_files(rows: Sequence[ClipRow], videos: str) -> tuple[list[ClipRow], list[BadRow]]:
    """Rows with the path of their file below `videos`, ids made unique; each folder is listed once.

    Of rows with the same id the first one that has a file is kept.
    """
    folders = sorted({row.folder for row in rows})
    with ThreadPoolExecutor(_LISTING_THREADS) as pool:
        listings = dict(zip(folders, pool.map(lambda folder: _listing(videos, folder), folders), strict=True))
    good, bad, taken = [], [], set()
    for row in rows:
        names = listings[row.folder]
        if names is None:
            bad.append(_bad(row, Reason.PATH_UNSAFE, "the folder is a link that leaves the video root"))
            continue
        path = _file_of(row, names)
        if path is None:
            bad.append(_bad(row, Reason.MISSING_FILE))
        elif row.clip_id in taken:
            bad.append(_bad(row, Reason.DUPLICATE_ID))
        else:
            taken.add(row.clip_id)
            good.append(replace(row, path=path))
    return good, bad


def clean_caption(text: str) -> str:
    """A caption without control and format characters, NFC, white space folded; '' where nothing visible is left."""
    text = unicodedata.normalize("NFC", _TERMINAL_CODES.sub("", text))
    kept = [
        " " if character.isspace() else character
        for character in text
        if character.isspace() or character in _JOINERS or unicodedata.category(character)[0] != "C"
    ]
    text = " ".join("".join(kept).split())
    return text if text.strip(_JOINERS + " ") else ""


def _records(data: bytes, delimiter: str) -> Iterator[list[str] | str]:
    """CSV records, each a list of fields, or a message where it can't be read. Empty lines are no records."""
    text = data.decode("utf-8-sig", errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    while True:
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield str(error)
            continue
        if record:
            yield record


@dataclass(frozen=True)
class _Places:
    """Position of each column of use; None where there is none."""

    videoid: int
    caption: int
    page_dir: int | None
    path: int | None
    split: int | None
    extra: list[int]


def _places(header: list[str], columns: ColumnsConfig, name: str) -> _Places:
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise ManifestError(f"{name} names column {repeated[0]!r} twice; rename one of them")

    def place(field_name: str, is_needed: bool) -> int | None:
        column = getattr(columns, field_name)
        if column in header and column:
            return header.index(column)
        if is_needed:
            raise ManifestError(
                f"{name} has no column {column!r} for the {field_name} (found: {', '.join(header)}); "
                f"name it with --columns.{field_name}"
            )
        return None

    videoid, caption = place("videoid", True), place("caption", True)
    assert videoid is not None
    assert caption is not None
    path = place("path", bool(columns.path))
    page_dir, split = place("page_dir", False), place("split", False)
    used = {videoid, caption, path, page_dir, split}
    extra = [index for index, column in enumerate(header) if column and index not in used]
    return _Places(videoid, caption, page_dir, path, split, extra)


def _check(
    number: int, record: list[str] | str, header: list[str], places: _Places, default_split: str
) -> ClipRow | BadRow:
    """One record as a row: the first thing that is wrong with it, or the clip."""
    if isinstance(record, str):
        return BadRow(number, "", Reason.BAD_ROW, record)
    clip_id = record[places.videoid].strip() if places.videoid < len(record) else ""
    if any("\udc80" <= character <= "\udcff" for value in record for character in value):
        return BadRow(number, clip_id.encode(errors="replace").decode(), Reason.BAD_ROW, "not UTF-8")
    if len(record) != len(header):
        return BadRow(number, clip_id, Reason.BAD_ROW, f"{len(record)} of {len(header)} columns")
    if not clip_id:
        return BadRow(number, "", Reason.MISSING_ID)
    split = (record[places.split].strip() if places.split is not None else "") or default_split
    if not _SPLIT.fullmatch(split):
        return BadRow(number, clip_id, Reason.BAD_ROW, f"split {split!r}")
    folder, path = _location(clip_id, record, places)
    unsafe = _unsafe(f"{folder}/{path}" if folder else path)
    if unsafe or "/" in clip_id:
        return BadRow(number, clip_id, Reason.PATH_UNSAFE, unsafe or "'/' in the id", split)
    if "\0" in record[places.caption]:
        return BadRow(number, clip_id, Reason.BAD_CAPTION, "NUL character", split)
    caption = clean_caption(record[places.caption])
    if not caption:
        return BadRow(number, clip_id, Reason.EMPTY_CAPTION, "", split)
    extra = {header[index].strip(): record[index] for index in places.extra}
    folder = "/".join(part for part in folder.split("/") if part not in ("", "."))
    return ClipRow(number, clip_id, split, caption, folder, path if places.path is not None else "", extra)


def _location(clip_id: str, record: list[str], places: _Places) -> tuple[str, str]:
    """Folder and file name, the latter without its ending where the manifest has no paths."""
    if places.path is not None:
        folder, _, name = record[places.path].strip().rpartition("/")
        return folder or ("/" if record[places.path].strip().startswith("/") else ""), name
    return (record[places.page_dir].strip() if places.page_dir is not None else ""), clip_id


def _unsafe(path: str) -> str:
    """Why a path may leave the video root; '' where it may not."""
    if path.startswith("/"):
        return "an absolute path"
    if ".." in path.split("/"):
        return "'..' in the path"
    if "\\" in path:
        return "'\\' in the path"
    return "a control character in the path" if any(ord(character) < 32 for character in path) else ""


def _listing(videos: str, folder: str) -> dict[str, str] | None:
    """The names in a folder, by themselves and by what comes before a video ending; None outside the root."""
    uri = storage.join(videos, folder) if folder else videos
    if storage.is_local(videos) and not is_inside(uri, videos):
        return None
    found: dict[str, str] = {}
    for name in sorted(storage.list_names(uri), key=_ending_rank):
        stem = name[: -len(ENDINGS[_ending_rank(name)])] if _ending_rank(name) < len(ENDINGS) else name
        for key in (stem, unicodedata.normalize("NFC", stem), f"/{name}", unicodedata.normalize("NFC", f"/{name}")):
            found.setdefault(key, name)
    return found


def is_inside(path: str, root: str) -> bool:
    """Whether a local path lies below `root` once all links are followed."""
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    return real == real_root or real.startswith(real_root.rstrip("/") + "/")


def _ending_rank(name: str) -> int:
    """Place of a name's ending in `ENDINGS`; their number for any other."""
    lower = name.lower()
    return next((rank for rank, ending in enumerate(ENDINGS) if lower.endswith(ending)), len(ENDINGS))


def _file_of(row: ClipRow, names: dict[str, str]) -> str | None:
    """The row's path below the root: as the manifest says, or its id with a known ending."""
    wanted = f"/{row.path}" if row.path else row.clip_id
    name = names.get(wanted) or names.get(unicodedata.normalize("NFC", wanted))
    if name is None or (not row.path and _ending_rank(name) == len(ENDINGS)):
        return None
    return f"{row.folder}/{name}" if row.folder else name


def _bad(row: ClipRow, reason: Reason, detail: str = "") -> BadRow:
    name = row.path or row.clip_id
    return BadRow(row.record, row.clip_id, reason, detail, row.split, f"{row.folder}/{name}" if row.folder else name)


def count_reasons(rows: Iterable[BadRow]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.reason.value] = counts.get(row.reason.value, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
