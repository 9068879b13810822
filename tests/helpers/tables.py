"""Manifests written on the spot, and the rows that are read from them."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evilm.config.data import ColumnsConfig
from evilm.config.stages import ShardVideos
from evilm.manifests.reader import read_manifests
from evilm.manifests.rows import BadRow, ClipRow

Row = ClipRow | BadRow
TAR_MEMBERS = {
    "d/0.mp4": b"zero" * 700,
    "d/0.txt": b"Zero.",
    "d/0.json": b'{"fps": 25, "caption": "not this"}',
    "1.json": b'{"caption": "One.", "split": "val"}',
    "1.webm": b"one" * 500,
    "2.mp4": b"two",
    "3.txt": b"No video.",
    "4.mp4": b"4",
    "4.json": b"[",
    "5.mp4": b"5",
    "5.gif": b"5",
    ".DS_Store": b"",
}
"""Two good samples, and every sort of bad one."""


def read_rows(
    manifest: Path | str, videos: Path | str = "", columns: Mapping[str, str] | None = None, **settings: Any
) -> list[Row]:
    """Read every row of a manifest.

    Args:
        manifest: file, folder or pattern.
        videos: root of the videos.
        columns: `--columns.*`.
        settings: others, dotted.
    """
    settings |= {f"columns.{name}": column for name, column in (columns or {}).items()}
    return list(read_manifests(ShardVideos(manifest=str(manifest), videos=str(videos)).override(settings)))


def read_clips(manifest: Path | str, videos: Path | str = "", **settings: Any) -> list[ClipRow]:
    """Read the rows of a manifest, all of which must be good ones."""
    return only_clips(read_rows(manifest, videos, **settings))


def only_clips(rows: Iterable[Row]) -> list[ClipRow]:
    """Return the rows, all of which must be good ones."""
    rows = list(rows)
    good = [row for row in rows if isinstance(row, ClipRow)]
    assert good == rows
    return good


def bad_rows(rows: Iterable[Row]) -> list[BadRow]:
    """Return those of the rows that are bad."""
    return [row for row in rows if isinstance(row, BadRow)]


def rows_of_text(folder: Path, text: str | None = None, name: str = "clips.csv", **settings: Any) -> list[Row]:
    """Write a manifest with this text, if there is any, and read its rows; videos are in the folder `v` beside it."""
    if text is not None:
        (folder / name).write_text(text, newline="")
    (folder / "v").mkdir(exist_ok=True)
    return read_rows(folder / name, folder / "v", **settings)


def rows_of_bytes(
    data: bytes, folder: Path, columns: ColumnsConfig | None = None, name: str = "a.csv"
) -> tuple[list[ClipRow], list[BadRow]]:
    """Write a manifest that holds `data`, and read its good and its bad rows."""
    (folder / name).write_bytes(data)
    config = ShardVideos(manifest=str(folder / name), videos=str(folder), columns=columns or ColumnsConfig())
    rows = list(read_manifests(config))
    return [row for row in rows if isinstance(row, ClipRow)], bad_rows(rows)


def as_csv(header: Sequence[str], *rows: Sequence[str], delimiter: str = ",") -> bytes:
    """Return a table as text."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([header, *rows])
    return text.getvalue().encode()


def write_csv(path: Path, header: Sequence[str], *rows: Sequence[str]) -> Path:
    """Write a table, as its name says: tabs or commas, compressed or not."""
    data = as_csv(header, *rows, delimiter="\t" if ".tsv" in path.name else ",")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_json_lines(path: Path, *records: Mapping[str, Any]) -> Path:
    """Write a record per line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar of these members, in this order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
