"""Contact sheets: clips as people look at them, one under the other, frames in a row with their times."""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evilm.errors import ConfigError
from evilm.io.storage import join
from evilm.shards import CodesManifest, FrameManifest, ShardInfo, open_shard, read_group
from evilm.video.reasons import ClipFlag

SHEET_CLIPS = 20
"""Clips per picture; more go to further ones."""
_MARGIN, _GAP, _PAD = 28, 10, 16
_FRAME_PX = 208
_LEAST_WIDTH = 900
_PAPER, _CARD, _INK, _FAINT, _RULE = "#eef0f3", "#ffffff", "#1c232b", "#66717d", "#d5dae0"
_VIEW_COLOURS = ("#ff4d4d", "#ffd23f", "#35d0ff", "#7dff6a", "#ff7ae0", "#ff9f43", "#b28dff", "#ffffff")
_COLUMNS = ["clip_id", "captions", "frames", "frame_pts_us", "duration_s", "fps", "width", "height", "codec", "flags"]
_SPAN_COLUMNS = ["start_s", "end_s"]


@dataclass(frozen=True)
class SheetClip:
    """A row of a shard, with the views its codes were made of."""

    row: dict[str, Any]
    views: list[dict[str, Any]]


def choose_clips(frames: FrameManifest, split: str, num_clips: int, seed: int) -> list[tuple[ShardInfo, int]]:
    """Seeded random clips of a split, in the order they are stored: shard and row."""
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
        with open_shard(join(frames.uri, shard.file)) as file:
            ids = file.read(columns=["clip_id"])["clip_id"].to_pylist()
        found |= {clip_id: (shard, row) for row, clip_id in enumerate(ids) if clip_id in wanted}
    if missing := [clip_id for clip_id in clip_ids if clip_id not in found]:
        raise ConfigError(f"no clip {missing[0]!r} in {frames.uri}; see {frames.uri}/quarantine for clips quarantined")
    return [found[clip_id] for clip_id in dict.fromkeys(clip_ids)]


def load_clips(
    frames: FrameManifest, places: Sequence[tuple[ShardInfo, int]], codes: CodesManifest | None = None
) -> Iterator[SheetClip]:
    """The clips at some places; only their row groups are read."""
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


def draw_sheet(title: str, clips: Sequence[SheetClip], frame_px: int) -> bytes:
    """A picture of some clips as PNG.

    Args:
        title: stands above them.
        clips: at least one; each becomes a card.
        frame_px: side of the stored frames, in which the views are given.
    """
    most = max(len(clip.row["frames"]) for clip in clips)
    per_row = min(most, 8)
    width = max(2 * (_MARGIN + _PAD) + per_row * (_FRAME_PX + _GAP) - _GAP, _LEAST_WIDTH)
    cards = [_draw_card(clip, width - 2 * _MARGIN, per_row, frame_px) for clip in clips]
    heading = 34 + _GAP
    height = 2 * _MARGIN + heading + sum(card.height + _PAD for card in cards) - _PAD
    sheet = Image.new("RGB", (width, height), _PAPER)
    ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), title, _INK, _font(24, bold=True))
    y = _MARGIN + heading
    for card in cards:
        sheet.paste(card, (_MARGIN, y))
        y += card.height + _PAD
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def _draw_card(clip: SheetClip, width: int, per_row: int, frame_px: int) -> Image.Image:
    """One clip: id and facts, caption, frames with their times."""
    row, inner = clip.row, width - 2 * _PAD
    first, *others = row["captions"]
    more = f" (and {len(others)} more)" if others else ""
    lines = wrap(first + more, _font(17), inner, most=4)
    rows = -(-len(row["frames"]) // per_row)
    text_px, line_px, label_px = 26, 24, 24
    height = _PAD + text_px + line_px * len(lines) + _GAP + rows * (_FRAME_PX + label_px + 4) + _PAD - 4
    card = Image.new("RGB", (width, height), _CARD)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, width - 1, height - 1), outline=_RULE)
    facts = _facts(row)
    facts_px = _font(14).getlength(facts)
    clip_id = fit(row["clip_id"], _font(16, bold=True), inner - facts_px - 2 * _PAD)
    draw.text((_PAD, _PAD - 2), clip_id, _INK, _font(16, bold=True))
    draw.text((width - _PAD - facts_px, _PAD), facts, _FAINT, _font(14))
    y = _PAD + text_px
    for line in lines:
        draw.text((_PAD, y), line, _INK, _font(17))
        y += line_px
    y += _GAP
    for number, (jpeg, pts_us) in enumerate(zip(row["frames"], row["frame_pts_us"], strict=False)):
        x = _PAD + number % per_row * (_FRAME_PX + _GAP)
        top = y + number // per_row * (_FRAME_PX + label_px + 4)
        card.paste(_draw_frame(jpeg, clip.views, frame_px), (x, top))
        draw.text((x, top + _FRAME_PX + 4), f"{pts_us / 1e6:.2f} s", _FAINT, _font(14))
    return card


def _facts(row: dict[str, Any]) -> str:
    """Length, rate, size, codec and flags of a clip, in one line."""
    start, end = row.get("start_s"), row.get("end_s")
    parts = [f"{row['duration_s']:.2f} s"]
    if start is not None or end is not None:
        parts.append(f"cut from {start or 0:g} to {'its end' if end is None else f'{end:g}'} s")
    parts += [f"{row['fps']:.4g} fps", f"{row['width']} × {row['height']}", row["codec"], *ClipFlag.names(row["flags"])]
    return "  ·  ".join(parts)


def _draw_frame(jpeg: bytes, views: Sequence[dict[str, Any]], frame_px: int) -> Image.Image:
    """A frame with the boxes of its views; the plain one, which is the whole frame, is not drawn."""
    try:
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((_FRAME_PX, _FRAME_PX), Image.Resampling.LANCZOS)
    except OSError:
        picture = Image.new("RGB", (_FRAME_PX, _FRAME_PX), "#c62828")
        ImageDraw.Draw(picture).text((10, 10), "damaged", "#ffffff", _font(16, bold=True))
        return picture
    draw, scale = ImageDraw.Draw(picture), _FRAME_PX / frame_px
    for number, view in enumerate(views[1:], start=1):
        colour = _VIEW_COLOURS[(number - 1) % len(_VIEW_COLOURS)]
        left, top = view["x"] * scale, view["y"] * scale
        right, bottom = left + view["width"] * scale - 1, top + view["height"] * scale - 1
        draw.rectangle((left, top, right, bottom), outline="#000000", width=3)
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    for number, view in enumerate(views[1:], start=1):  # above all boxes
        _draw_label(draw, number, view, scale)
    return picture


def _draw_label(draw: ImageDraw.ImageDraw, number: int, view: dict[str, Any], scale: float) -> None:
    """The number of a view in a corner of its box, another corner for each of four; ↔ where it is mirrored."""
    text = f"{number}↔" if view["flip"] else f"{number}"
    font = _font(13, bold=True)
    wide, high = font.getlength(text) + 8, 18
    right, bottom = (view["x"] + view["width"]) * scale, (view["y"] + view["height"]) * scale
    x = view["x"] * scale if number % 2 else right - wide
    y = view["y"] * scale if (number - 1) // 2 % 2 == 0 else bottom - high
    draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=_VIEW_COLOURS[(number - 1) % len(_VIEW_COLOURS)])
    draw.text((x + 4, y + 1), text, "#000000", font)


def wrap(text: str, font: ImageFont.FreeTypeFont, width_px: float, most: int) -> list[str]:
    """Text in lines that fit; words that are too long are broken, and what exceeds `most` lines ends in `…`."""
    lines, line = list[str](), ""
    words = " ".join(text.split())[: (most + 1) * int(width_px)].split(" ")
    while words and len(lines) <= most:
        word = words.pop(0)
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width_px:
            line = longer
        elif line:
            lines.append(line)
            line = ""
            words.insert(0, word)
        else:  # one word, longer than a line
            cut = max(_longest(word, font, width_px), 1)
            lines.append(word[:cut])
            words.insert(0, word[cut:])
    lines += [line] if line else []
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], fit(lines[most - 1] + " …", font, width_px)]


def fit(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> str:
    """Text that fits on a line, its end replaced by `…` where it must be."""
    if len(text) <= width_px and font.getlength(text) <= width_px:  # no more than a character per pixel is looked at
        return text
    text = text[: int(width_px)].removesuffix(" …")
    return text[: _longest(text, font, width_px, "…")] + "…"


def _longest(text: str, font: ImageFont.FreeTypeFont, width_px: float, end: str = "") -> int:
    """Return how many characters of a text fit on a line with `end` behind them."""
    return bisect_right(range(1, len(text) + 1), width_px, key=lambda number: font.getlength(text[:number] + end))


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic, Arabic and more, the same on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)
