"""The worst errors of a model as pictures: an HTML page, and a PNG of the first ones."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg

from evilm.dataloader.clip_reader import load_clips
from evilm.dataloader.item_loader import ClipIndex
from evilm.io.figures import to_png

_COLUMNS, _PNG_ERRORS, _SHOWN = 4, 12, 60


@dataclass(frozen=True)
class WorstError:
    """An item that a model got wrong."""

    item_id: str
    clip_id: str
    text: str
    predicted: str
    right: str
    probability: float | None
    """Probability that the model gave to its prediction; None for retrieval."""


def draw_gallery(
    errors: Sequence[WorstError], clips: ClipIndex, order: str = "wrong predictions with the highest probability first"
) -> tuple[bytes, bytes]:
    """Draw errors, the worst ones first; `order` says what that means.

    Returns:
        An HTML page that needs no other file, and a PNG of the first errors.
    """
    frames = {clip_id: _frames(clips, clip_id) for clip_id in {error.clip_id for error in errors}}
    return _page(errors, frames, order), _picture(errors[:_PNG_ERRORS], frames)


def _frames(clips: ClipIndex, clip_id: str) -> list[bytes]:
    """Read the JPEGs of a clip."""
    shard, group, row = clips.place_of[clip_id]
    found = load_clips(clips.pairs[shard], group)
    return [bytes(jpeg) for jpeg in found.jpegs(row, range(found.num_frames(row)))]


def _page(errors: Sequence[WorstError], frames: dict[str, list[bytes]], order: str) -> bytes:
    rows = []
    for error in errors:
        images = "".join(
            f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="frame {number}">'
            for number, jpeg in enumerate(frames[error.clip_id], start=1)
        )
        shown = "" if error.probability is None else f" ({error.probability:.0%})"
        predicted, where = f"{error.predicted}{shown}", f"{error.item_id}, {error.clip_id}"
        cells = (error.text, error.right, predicted, where)
        rows.append(f"<tr><td>{images}</td>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>")
    style = "body{font-family:sans-serif} td{border-top:1px solid #ccc;padding:6px;vertical-align:top} img{width:112px}"
    head = "".join(f"<th>{name}</th>" for name in ("frames", "text", "right", "predicted", "item and clip"))
    return (
        f"<!doctype html><html><head><meta charset='utf-8'><title>Worst errors</title><style>{style}</style></head>"
        f"<body><h1>Worst errors</h1><p>{len(errors)} items, {order}.</p>"
        f"<table><tr>{head}</tr>{''.join(rows)}</table></body></html>"
    ).encode()


def _picture(errors: Sequence[WorstError], frames: dict[str, list[bytes]]) -> bytes:
    from matplotlib.figure import Figure

    lines = max(1, -(-len(errors) // _COLUMNS))
    figure = Figure(figsize=(3.2 * _COLUMNS, 3.4 * lines), layout="constrained")
    for place, error in enumerate(errors, start=1):
        axis, jpegs = figure.add_subplot(lines, _COLUMNS, place), frames[error.clip_id]
        axis.imshow(np.asarray(simplejpeg.decode_jpeg(jpegs[len(jpegs) // 2])))
        axis.set_axis_off()
        title = "\n".join([_cut(error.text), f"right: {_cut(error.right)}", f"predicted: {_cut(error.predicted)}"])
        axis.set_title(title, fontsize="small", loc="left", parse_math=False)
    return to_png(figure)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
