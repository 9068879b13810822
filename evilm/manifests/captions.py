"""Read the captions of a corpus: tables and tars as manifests of clips, COCO captions JSON, or one per line."""

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from evilm.config.data import ColumnsConfig
from evilm.errors import ManifestError
from evilm.io import storage
from evilm.manifests.caption_text import Rejected, written_captions
from evilm.manifests.layouts import ColumnRoles, assign
from evilm.manifests.lists import parse_list
from evilm.manifests.manifest_files import is_tar, list_manifests
from evilm.manifests.records import ParseError, as_split, as_text, open_table
from evilm.manifests.tars import Sample, merge_samples, read_tar

logger = logging.getLogger(__name__)


def read_captions(manifest: str, columns: ColumnsConfig | None = None, split: str = "") -> list[str]:
    """Read the captions of manifests in their order, stripped, without empty ones.

    Args:
        manifest: tables, tars of clips, .json in COCO's layout, or .txt; several as `list_manifests` takes them.
        columns: names of the caption and the split column of a table.
        split: keep this split only, where a table has a split column; '' keeps all.

    Raises:
        ManifestError: no such file, column or split, or no caption at all.
    """
    captions: list[str] = []
    met: set[str] = set()
    split = as_split(split)
    for uri in list_manifests(manifest):
        ending = uri.rsplit(".", 1)[-1].lower()
        if ending in ("json", "txt"):
            captions += _from_file(uri, ending)
            continue
        for name, caption in _from_tar(uri, columns) if is_tar(uri) else _from_table(uri, columns):
            name = name or split
            met.add(name)
            if not split or name == split:
                captions.append(caption)
    if met and split and split not in met and not captions:
        raise ManifestError(f"{manifest} has no rows of split {split!r}; found {', '.join(sorted(met))}")
    kept = [caption for caption in (c.strip() for c in captions) if caption]
    if not kept:
        raise ManifestError(f"{manifest} has {len(captions)} rows and no caption in them; nothing can be counted")
    if len(kept) < len(captions):
        left = len(captions) - len(kept)
        logger.info("%s: %d of %d captions are empty or not texts, and left out", manifest, left, len(captions))
    return kept


def _from_table(uri: str, columns: ColumnsConfig | None) -> Iterator[tuple[str, str]]:
    """Split and caption of each row that can be read."""
    with open_table(uri) as table:
        roles = assign(table.header, columns or ColumnsConfig(), uri, needed=("caption",))
        for record in table.records:
            if not isinstance(record, ParseError):
                yield from _captions(record, roles)


def _from_tar(uri: str, columns: ColumnsConfig | None) -> Iterator[tuple[str, str]]:
    """Split and caption of each sample of a tar."""
    samples = [sample.values for sample in merge_samples(read_tar(uri)) if isinstance(sample, Sample)]
    roles = assign(list(dict.fromkeys(key for values in samples for key in values)), columns or ColumnsConfig(), uri)
    for values in samples:
        yield from _captions(values, roles)


def _captions(record: Mapping[str, Any], roles: ColumnRoles) -> Iterator[tuple[str, str]]:
    """Split and captions of a record, or of each of its spans; '' for what is not a caption."""
    value, split = record.get(roles.caption), as_split(as_text(record.get(roles.split)))
    has_spans = roles.start and parse_list(record.get(roles.start)) is not None
    for cell in (parse_list(value) if has_spans else None) or [value]:
        for text in written_captions(cell):
            yield split, "" if isinstance(text, Rejected) else text.encode(errors="replace").decode()


def _from_file(uri: str, ending: str) -> list[str]:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        raise ManifestError(f"no caption file at {uri}; give a table, a COCO captions JSON, or a .txt") from None
    return _from_coco(text, uri) if ending == "json" else text.splitlines()


def _from_coco(text: str, uri: str) -> list[str]:
    """Return `annotations[].caption` in the file's order."""
    try:
        data: Any = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{uri} is not valid JSON: {error}") from None
    found = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(a, dict) and isinstance(a.get("caption"), str) for a in found):
        kind = f"keys {', '.join(map(str, data))}" if isinstance(data, dict) else f"a {type(data).__name__}"
        raise ManifestError(f"{uri} is not COCO captions JSON: annotations[].caption expected, found {kind}")
    return [annotation["caption"] for annotation in found]
