"""The qualitative panel: a picture of what the model makes of a few held-out clips, the same ones in every panel.

Of each clip: its frames, what was masked of them, the words of true and guessed codes, masked words and guesses, and
the matching probability with its own caption and with another clip's.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from evilm.dataloader.collate import PretrainBatch
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.base_tokenizer import BaseVideoTokenizer
from evilm.model.tokenizers.code_words import CodeWords
from evilm.text.vocab import Vocab
from evilm.tracking.panel_canvas import FAINT, GAP, INK, MARGIN, RIGHT, TEXT_WIDTH, WRONG, PanelCanvas, cut, font
from evilm.tracking.panel_view import ClipView, predict

_FRAME, _MOST_FRAMES, _MOST_CODES = 136, 6, 8


def draw_panel(
    model: EViLMModel,
    tokenizer: BaseVideoTokenizer | CodeWords,
    vocab: Vocab,
    batch: PretrainBatch,
    title: str = "",
) -> Image.Image:
    """Draw what `model` makes of every clip of a batch.

    Args:
        model: on any device, in any mode, in which it is left.
        tokenizer: gives words to codes.
        vocab: of model and tokenizer.
        batch: as pre-training makes it, on CPU.
        title: printed at the top.
    """
    code_words = tokenizer if isinstance(tokenizer, CodeWords) else CodeWords(tokenizer, vocab)
    views = predict(model, vocab, batch)
    shown = min(_MOST_FRAMES, len(views[0].frames)) if views else 1
    left = shown * (_FRAME + GAP)
    pen = PanelCanvas(left + TEXT_WIDTH + 4 * MARGIN, 120 + len(views) * 900)
    pen.header(title, _tally(views))
    for view in views:
        top = pen.y
        pen.y += MARGIN // 2
        chosen = _choose(view, shown)
        frames_end = _draw_frames(pen, view, shown, chosen)
        pen.x = 2 * MARGIN + left
        _draw_text(pen, view, chosen, code_words)
        pen.y = max(pen.y, frames_end) + MARGIN // 2
        pen.frame(top)
        pen.y += GAP
    return pen.finished()


def _tally(views: Sequence[ClipView]) -> str:
    """Return how much of the panel is right."""
    codes = [bool(right) for view in views for right in view.codes == view.guesses]
    words = [word.is_right for view in views for word in view.words]
    matched = [view.match > 0.5 for view in views]
    matched += [view.wrong_match <= 0.5 for view in views if not math.isnan(view.wrong_match)]
    parts = ("codes", codes), ("words", words), ("pairs", matched)
    return "right: " + ", ".join(f"{sum(of)} of {len(of)} {name}" for name, of in parts if of)


def _choose(view: ClipView, shown: int) -> list[int]:
    """Choose the masked regions to describe: a few of each shown frame, spread evenly, the same in every panel."""
    frame_of = np.nonzero(view.mask)[0]
    each = max(1, _MOST_CODES // shown)
    chosen: list[int] = []
    for frame in _shown_frames(view, shown):
        masked = np.flatnonzero(frame_of == frame)
        count = min(each, len(masked))
        chosen += [int(masked[(2 * k + 1) * len(masked) // (2 * count)]) for k in range(count)]
    return chosen


def _shown_frames(view: ClipView, shown: int) -> list[int]:
    return [k * len(view.frames) // shown for k in range(shown)]


def _draw_frames(pen: PanelCanvas, view: ClipView, shown: int, chosen: Sequence[int]) -> int:
    """Frames with right and wrong regions outlined, below them what the model saw; where they end."""
    grid = view.mask.shape[1]
    places = np.argwhere(view.mask)
    right = view.codes == view.guesses
    for column, frame in enumerate(_shown_frames(view, shown)):
        x = 2 * MARGIN + column * (_FRAME + GAP) - MARGIN // 2
        picture = Image.fromarray(view.frames[frame]).resize((_FRAME, _FRAME), Image.Resampling.LANCZOS)
        pen.image.paste(picture, (x, pen.y))
        pen.image.paste(picture, (x, pen.y + _FRAME + GAP))
        for number, (of, row, col) in enumerate(places):
            if of != frame:
                continue
            box = [x + col * _FRAME // grid, pen.y + row * _FRAME // grid]
            box += [x + (col + 1) * _FRAME // grid - 1, pen.y + (row + 1) * _FRAME // grid - 1]
            pen.draw.rectangle(box, outline=RIGHT if right[number] else WRONG, width=2 if grid > 5 else 3)
            below = [box[0], box[1] + _FRAME + GAP, box[2], box[3] + _FRAME + GAP]
            pen.draw.rectangle(below, fill="#000000")
            if number in chosen:
                middle = ((below[0] + below[2]) / 2, (below[1] + below[3]) / 2)
                pen.draw.text(middle, str(chosen.index(number) + 1), fill="#ffffff", font=font(13, True), anchor="mm")
    return pen.y + 2 * _FRAME + GAP


def _draw_text(pen: PanelCanvas, view: ClipView, chosen: Sequence[int], code_words: CodeWords) -> None:
    """Caption, matching and codes of a clip."""
    pen.label(f"clip {view.clip_id}")
    pen.flow(view.caption)
    pen.bar("this caption", view.match)
    if view.wrong_caption:
        pen.bar("another one", view.wrong_match)
        pen.flow(view.wrong_caption.split(), 13, FAINT)
    pen.y += 4
    pen.label("masked regions: true code → guess")
    true, guessed = ([int(codes[k]) for k in chosen] for codes in (view.codes, view.guesses))
    rows = zip(chosen, true, guessed, code_words.words(true), code_words.words(guessed), strict=True)
    top, half = pen.y, (len(chosen) + 1) // 2
    for place, (number, code, guess, words, guess_words) in enumerate(rows):
        if place == half:
            pen.y = top
        x = pen.x + (TEXT_WIDTH // 2 if place >= half else 0)
        color = RIGHT if code == guess else WRONG
        pen.at(x, f"{place + 1}", 13, FAINT, bold=True)
        described = " ".join([f"#{code}", *words])
        answer = "same" if code == guess else " ".join([f"#{guess}", *guess_words])
        width = pen.at(x + 22, cut(described, 25) + " → ", 13, INK)
        pen.at(x + 22 + width, f"{cut(answer, 23)} {view.chances[number]:.0%}", 13, color)
        pen.y += 19
    pen.y = top + 19 * half


def to_png(image: Image.Image) -> bytes:
    """A picture as PNG bytes."""
    sink = io.BytesIO()
    image.save(sink, format="PNG", compress_level=6)
    return sink.getvalue()
