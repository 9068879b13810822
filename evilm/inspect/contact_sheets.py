"""Contact sheets: clips as people look at them, one under the other, frames in a row with their times."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from evilm.errors import ConfigError
from evilm.io.figures import to_png
from evilm.io.storage import join
from evilm.shards import CodesManifest, FrameManifest, ShardInfo, read_columns, read_group
from evilm.video.reasons import ClipFlag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHEET_CLIPS = 20
"""Clips per picture; more go to further ones."""
_MARGIN, _GAP, _LINE = 28, 10, 24
_FRAME_PX, _MOST_PER_ROW, _LEAST_WIDTH = 208, 8, 900
_MOST_LINES, _CHAR_PX, _MOST_ID = 4, 8.5, 60
_DPI = 100
_VIEW_COLOURS = ("#ff4d4d", "#ffd23f", "#35d0ff", "#7dff6a", "#ff7ae0", "#ff9f43", "#b28dff", "#ffffff")
_COLUMNS = ["clip_id", "captions", "frames", "frame_pts_us", "duration_s", "fps", "width", "height", "codec", "flags"]
_SPAN_COLUMNS = ["start_s", "end_s"]


@dataclass(frozen=True)
class SheetClip:
    """A row of a shard, with the views its codes were made of."""

    row: dict[str, Any]
    views: list[dict[str, Any]]


def choose_clips(frames: FrameManifest, split: str, num_clips: int, seed: int) -> list[tuple[ShardInfo, int]]:
    """Choose random clips of a split by a seed, in the order they are stored: shard and row."""
    shards = frames.of_split(split)
    ends = np.cumsum([shard.num_clips for shard in shards])
    total = int(ends[-1]) if len(ends) else 0
    rng = np.random.default_rng([seed, *split.encode()])
    places = np.sort(rng.choice(total, min(num_clips, total), replace=False))
    found = np.searchsorted(ends, places, side="right")
    return [
        (shards[at], int(place - (ends[at] - shards[at].num_clips))) for at, place in zip(found, places, strict=True)
    ]


def find_clips(frames: FrameManifest, clip_ids: Sequence[str]) -> list[tuple[ShardInfo, int]]:
    """Return where clips lie, in the order of their ids.

    Raises:
        ConfigError: there is no such clip.
    """
    wanted, found = set(clip_ids), dict[str, tuple[ShardInfo, int]]()
    for shard in frames.shards:
        if wanted <= found.keys():
            break
        ids = read_columns(join(frames.uri, shard.file), ["clip_id"])["clip_id"].to_pylist()
        found |= {clip_id: (shard, row) for row, clip_id in enumerate(ids) if clip_id in wanted}
    if missing := [clip_id for clip_id in clip_ids if clip_id not in found]:
        raise ConfigError(f"no clip {missing[0]!r} in {frames.uri}; see {frames.uri}/quarantine for clips quarantined")
    return [found[clip_id] for clip_id in dict.fromkeys(clip_ids)]


def load_clips(
    frames: FrameManifest, places: Sequence[tuple[ShardInfo, int]], codes: CodesManifest | None = None
) -> Iterator[SheetClip]:
    """Load the clips at some places; only their row groups are read."""
    coded = {shard.frames_file: shard.file for shard in codes.shards} if codes else {}
    for shard, row in places:
        group = int(np.searchsorted(np.cumsum(shard.row_groups), row, side="right"))
        within = row - sum(shard.row_groups[:group])
        content = _read_row(frames.uri, shard.file, group, within, [*_COLUMNS, *_SPAN_COLUMNS])
        views: list[dict[str, Any]] = []
        if codes and shard.file in coded:
            views = _read_row(codes.uri, coded[shard.file], group, within, ["views"])["views"]
        yield SheetClip(content, views)


def _read_row(folder: str, file: str, group: int, row: int, columns: Sequence[str]) -> dict[str, Any]:
    return read_group(join(folder, file), group, columns).slice(row, 1).to_pylist()[0]


def draw_sheet(title: str, clips: Sequence[SheetClip], frame_px: int, squashed: bool = False) -> bytes:
    """Draw some clips as PNG.

    Args:
        frame_px: side of the stored frames, in which the views are given.
        squashed: say of clips that are not square that their frames have another aspect ratio than their videos.
    """
    from matplotlib.figure import Figure

    per_row = min(max(len(clip.row["frames"]) for clip in clips), _MOST_PER_ROW)
    width = max(2 * _MARGIN + per_row * (_FRAME_PX + _GAP), _LEAST_WIDTH)
    captions = [wrap(clip.row["captions"], int((width - 2 * _MARGIN) / _CHAR_PX)) for clip in clips]
    frame_rows = [-(-len(clip.row["frames"]) // per_row) for clip in clips]
    heights = [
        _LINE * (2 + len(lines)) + rows * (_FRAME_PX + _LINE) for lines, rows in zip(captions, frame_rows, strict=True)
    ]
    height = 2 * _MARGIN + 2 * _LINE + sum(heights)
    figure = Figure(figsize=(width / _DPI, height / _DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(_MARGIN, _MARGIN, title, fontsize=16, weight="bold", va="top", parse_math=False)
    y = _MARGIN + 2 * _LINE
    for clip, lines, tall in zip(clips, captions, heights, strict=True):
        _draw_clip(axes, clip, [heading(clip.row, squashed), *lines], y, per_row, frame_px)
        y += tall
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return to_png(figure, _DPI)


def _draw_clip(axes: "Axes", clip: SheetClip, lines: Sequence[str], y: float, per_row: int, frame_px: int) -> None:
    """Draw one clip from `y` down: lines of text, the first of them bold, and frames with their times."""
    row = clip.row
    for line, text in enumerate(lines):
        weight = "bold" if line == 0 else "normal"
        axes.text(_MARGIN, y + line * _LINE, text, fontsize=11, weight=weight, va="top", parse_math=False)
    top = y + len(lines) * _LINE
    for number, (jpeg, pts_us) in enumerate(zip(row["frames"], row["frame_pts_us"], strict=False)):
        left = _MARGIN + number % per_row * (_FRAME_PX + _GAP)
        above = top + number // per_row * (_FRAME_PX + _LINE)
        _draw_frame(axes, jpeg, clip.views, left, above, _FRAME_PX / frame_px)
        axes.text(left, above + _FRAME_PX + 2, f"{pts_us / 1e6:.2f} s", color="grey", fontsize=9, va="top")


def heading(row: dict[str, Any], squashed: bool) -> str:
    """Return id, length, rate, size, codec and flags of a clip in one line; `squashed` as in `draw_sheet`."""
    name = row["clip_id"] if len(row["clip_id"]) <= _MOST_ID else row["clip_id"][: _MOST_ID - 1] + "…"
    size = f"{row['width']} × {row['height']}"
    size += " squashed to a square" if squashed and row["width"] != row["height"] else ""
    start, end = row.get("start_s"), row.get("end_s")
    parts = [name, f"{row['duration_s']:.2f} s"]
    if start is not None or end is not None:
        parts.append(f"cut from {start or 0:g} to {'its end' if end is None else f'{end:g}'} s")
    parts += [f"{row['fps']:.4g} fps", size, row["codec"], *ClipFlag.names(row["flags"])]
    return "  ·  ".join(parts)


def _draw_frame(
    axes: "Axes", jpeg: bytes, views: Sequence[dict[str, Any]], left: float, top: float, scale: float
) -> None:
    """Draw a frame with the boxes of its views, ↔ where one is mirrored; not of the first, which is the whole frame."""
    from matplotlib.patches import Rectangle

    try:
        picture = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    except OSError:
        axes.add_patch(Rectangle((left, top), _FRAME_PX, _FRAME_PX, color="#c62828"))
        axes.text(left + 10, top + 10, "damaged", color="white", weight="bold", va="top")
        return
    axes.imshow(picture, extent=(left, left + _FRAME_PX, top + _FRAME_PX, top), aspect="auto")
    for number, view in enumerate(views[1:], start=1):
        colour = _VIEW_COLOURS[(number - 1) % len(_VIEW_COLOURS)]
        x, y = left + view["x"] * scale, top + view["y"] * scale
        width, height = view["width"] * scale, view["height"] * scale
        axes.add_patch(Rectangle((x + 1, y + 1), width - 2, height - 2, fill=False, edgecolor=colour, linewidth=1.5))
        # Another corner for each of four views, so that labels do not hide each other.
        at_left, at_top = number % 2 == 1, (number - 1) // 2 % 2 == 0
        axes.text(
            x if at_left else x + width, y if at_top else y + height, f"{number}↔" if view["flip"] else f"{number}",
            fontsize=8, weight="bold", ha="left" if at_left else "right", va="top" if at_top else "bottom",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def wrap(captions: Sequence[str], line_chars: int) -> list[str]:
    """Return the first caption in at most four lines, the last of which ends in `…` where there is more."""
    more = f" (and {len(captions) - 1} more)" if len(captions) > 1 else ""
    text = captions[0][: (_MOST_LINES + 1) * line_chars] + more
    return textwrap.wrap(text, line_chars, max_lines=_MOST_LINES, placeholder=" …")
