"""Layouts of manifests in use: whose columns hold what. Single columns can be named over a layout."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evilm.config.data import VIDEO_ENDINGS, ColumnsConfig
from evilm.errors import ConfigError, ManifestError
from evilm.manifests.records import show
from evilm.plugins import Registry

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"\d+([.:,]\d+)*")
KEY = "__key__"
"""Where a sample of a tar keeps the name it has there."""
ROLES = ("videoid", "caption", "page_dir", "path", "url", "start", "end", "duration", "split")


@dataclass(frozen=True)
class TableLayout:
    """The columns of a kind of table."""

    columns: Mapping[str, tuple[str, ...]]
    """Names of each role's column; of several names the first one that a table has is taken."""
    marks: frozenset[str] = frozenset()
    """Columns by which the layout is recognised; without any, it has to be named."""


WEBVID = TableLayout(
    {
        "videoid": ("videoid",),
        "caption": ("name",),
        "page_dir": ("page_dir",),
        "url": ("contentUrl",),
        "duration": ("duration",),
    }
)
WEBDATASET = TableLayout({"videoid": (KEY,), "caption": ("txt", "caption")}, frozenset({KEY}))
PANDA = TableLayout(
    {"videoid": ("videoID",), "caption": ("caption",), "url": ("url",), "start": ("timestamp",)},
    frozenset({"videoID", "timestamp", "caption"}),
)
KOALA = TableLayout(PANDA.columns, PANDA.marks | {"clarity_score"})
INTERNVID = TableLayout(
    {
        "videoid": ("YoutubeID",),
        "caption": ("Caption",),
        "start": ("Start_timestamp",),
        "end": ("End_timestamp",),
    },
    frozenset({"YoutubeID", "Start_timestamp", "End_timestamp"}),
)
VIDEO2DATASET = TableLayout(
    {"videoid": ("key",), "caption": ("caption", "txt"), "url": ("url",)}, frozenset({"key", "status"})
)
OPENVID = TableLayout(
    {"path": ("video",), "caption": ("caption",), "duration": ("seconds",)}, frozenset({"video", "caption"})
)
TABLE_LAYOUTS: Registry[TableLayout] = Registry(
    "table layout",
    "evilm.table_layouts",
    {name.lower(): f"{__name__}:{name}" for name in (
        "WEBDATASET", "KOALA", "PANDA", "INTERNVID", "VIDEO2DATASET", "OPENVID", "WEBVID",
    )},
)  # fmt: skip
"""Layouts by name, the most telling marks first."""


@dataclass(frozen=True)
class ColumnRoles:
    """The column of each thing that we need; '' where there is none."""

    layout: str
    videoid: str
    caption: str
    page_dir: str
    path: str
    url: str
    start: str
    end: str
    duration: str
    split: str

    @property
    def used(self) -> set[str]:
        """Return the columns that become fields of a clip; the others are carried along."""
        return {self.videoid, self.caption, self.page_dir, self.path, self.start, self.end, self.split} - {""}


def assign(header: Sequence[str], columns: ColumnsConfig, name: str, needed: Sequence[str] = ROLES[:2]) -> ColumnRoles:
    """Return which columns of a manifest hold what.

    Args:
        columns: the layout, and columns named over it.
        name: what to call the manifest in messages.
        needed: roles without which it is of no use.

    Raises:
        ManifestError: a column that is needed, or was named, is not there.
    """
    layout = columns.layout
    if layout == "auto":
        marks = ((known, TABLE_LAYOUTS.get(known).marks) for known in TABLE_LAYOUTS.names())
        layout = next((known for known, found in marks if found and found <= set(header)), "webvid")
    logger.info("%s: columns of %s%s", name, layout, ", by its header" if columns.layout == "auto" else "")
    found: dict[str, str] = {}
    for role in ROLES:
        named = getattr(columns, role)
        known = TABLE_LAYOUTS.get(layout).columns.get(role, ("split",) if role == "split" else ())
        wanted = known if named is None else (named,) if named else ()
        found[role] = next((column for column in wanted if column in header), "")
        if role == "split" and named is None and not found[role]:  # JSON lines may have it in later records only
            found[role] = next(iter(wanted), "")
        if wanted and not found[role] and (named or role in needed):
            advice = f"name it with --columns.{role.replace('_', '-')}, or all by --columns.layout"
            if _is_row(header):
                advice = "its first line looks like a row: give it a header line, with the names of the columns"
            elif name.lower().removesuffix(".gz").endswith((".csv", ".tsv", ".txt")) and not _is_known(header):
                advice += "; if its first line is a row, give it a header line"
            raise ManifestError(f"{name} has no column {wanted[0]!r} for the {role} (found: {show(header)}); {advice}")
    if "caption" in needed and not found["caption"]:
        raise ConfigError("columns.caption is empty; name the column of the captions")
    if "videoid" in needed and not (found["videoid"] or found["path"] or found["url"]):
        raise ConfigError(
            "columns.videoid, .path and .url are all empty; name at least one column that locates the video"
        )
    return ColumnRoles(layout, **found)


def _is_known(header: Sequence[str]) -> bool:
    """Check whether a header has any column of a layout."""
    layouts = map(TABLE_LAYOUTS.get, TABLE_LAYOUTS.names())
    return any(name in header for layout in layouts for names in layout.columns.values() for name in names)


def _is_row(header: Sequence[str]) -> bool:
    """Guess whether a header is none: names of columns are no numbers, URLs, sentences or names of videos."""
    return any(
        "://" in name or name.count(" ") >= 2 or name.lower().endswith(VIDEO_ENDINGS) or _NUMBER.fullmatch(name)
        for name in header
    )
