"""Read the captions of a corpus: a CSV by column name, COCO captions JSON, or plain text with one per line."""

import csv
import io
import json
import logging
from typing import Any

from evilm import storage
from evilm.config.data import ColumnsConfig
from evilm.errors import ManifestError

logger = logging.getLogger(__name__)

_FIELD_LIMIT = 2**24  # the csv module stops at 128 KiB by default; long web captions exist


def read_captions(uri: str, columns: ColumnsConfig | None = None, split: str = "") -> list[str]:
    """The captions of a file in its order, stripped, empty ones left out.

    Args:
        uri: .csv or .tsv with a header, .json in COCO's layout, or .txt.
        columns: names of the caption and the split column of a table.
        split: keep this split only, where the table has a split column; '' keeps all.

    Raises:
        ManifestError: no such file, column or split, or no caption at all.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        raise ManifestError(f"no caption file at {uri}; give a CSV, a COCO captions JSON, or a .txt") from None
    except IsADirectoryError:
        raise ManifestError(f"{uri} is a folder; give the CSV, COCO captions JSON, or .txt itself") from None
    ending = uri.rsplit(".", 1)[-1].lower()
    if ending == "json":
        captions = _from_coco(text, uri)
    elif ending == "txt":
        captions = text.splitlines()
    else:
        captions = _from_table(text, uri, columns or ColumnsConfig(), split, "\t" if ending == "tsv" else ",")
    kept = [caption for caption in (c.strip() for c in captions) if caption]
    if not kept:
        raise ManifestError(f"{uri} has {len(captions)} rows and no caption in them; nothing can be counted")
    if len(kept) < len(captions):
        logger.info("%s: %d of %d captions are empty and left out", uri, len(captions) - len(kept), len(captions))
    return kept


def _from_table(text: str, uri: str, columns: ColumnsConfig, split: str, delimiter: str) -> list[str]:
    """The caption column, of one split where there is a split column."""
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        if columns.caption not in header:
            raise ManifestError(
                f"{uri} has no caption column {columns.caption!r}; found {', '.join(header) or 'no columns'}; "
                "name the right one with --columns.caption"
            )
        at = header.index(columns.caption)
        split_at = header.index(columns.split) if columns.split in header else -1
        rows = [row for row in reader if len(row) > at]
    except csv.Error as error:
        raise ManifestError(f"{uri} is not a table we can read, near line {reader.line_num}: {error}") from None
    if split and split_at >= 0:
        splits = [row[split_at].strip() or split if len(row) > split_at else split for row in rows]
        if rows and split not in splits:
            raise ManifestError(f"{uri} has no rows of split {split!r}; found {', '.join(sorted(set(splits)))}")
        rows = [row for row, name in zip(rows, splits, strict=True) if name == split]
    return [row[at] for row in rows]


def _from_coco(text: str, uri: str) -> list[str]:
    """`annotations[].caption` in the file's order."""
    try:
        data: Any = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{uri} is not valid JSON: {error}") from None
    found = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(a, dict) and isinstance(a.get("caption"), str) for a in found):
        kind = f"keys {', '.join(map(str, data))}" if isinstance(data, dict) else f"a {type(data).__name__}"
        raise ManifestError(f"{uri} is not COCO captions JSON: annotations[].caption expected, found {kind}")
    return [annotation["caption"] for annotation in found]
