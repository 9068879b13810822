"""The canvas of the qualitative panel: text, captions with masked words, bars, cards."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evilm.tracking.panel_view import MaskedWord

MARGIN, GAP, TEXT_WIDTH = 24, 8, 760
INK, FAINT, RIGHT, WRONG = "#111827", "#6b7280", "#15803d", "#c2410c"
_PAPER, _CARD, _LINE, _RIGHT_FILL, _WRONG_FILL, _BAR, _TRACK = (
    "#f3f4f6", "#ffffff", "#d1d5db", "#dcfce7", "#ffedd5", "#2563eb", "#e5e7eb",
)  # fmt: skip
_ENDS = (".", ",", "!", "?", ";", ":", ")")  # stand close to the word before them


class PanelCanvas:
    """A canvas with a place to write at, which grows downwards."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), _PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.x, self.y = MARGIN, MARGIN

    def header(self, title: str, tally: str) -> None:
        """Title and tally in one line, below it what the colours mean."""
        self.draw.text((MARGIN, self.y), title, fill=INK, font=font(20, True))
        self.draw.text((self.image.width - MARGIN, self.y + 3), tally, fill=INK, font=font(15), anchor="ra")
        self.y += 30
        legend = "above: the clip, masked regions outlined; below: what the model sees. Guesses: "
        self.draw.text((MARGIN, self.y), legend, fill=FAINT, font=font(13))
        x = MARGIN + width_of(legend, 13)
        for text, color in (("right", RIGHT), (" or ", FAINT), ("wrong", WRONG), (", with probability", FAINT)):
            self.draw.text((x, self.y), text, fill=color, font=font(13))
            x += width_of(text, 13)
        self.y += 28

    def label(self, text: str) -> None:
        """A small grey line."""
        self.at(self.x, text, 12, FAINT)
        self.y += 18

    def at(self, x: int, text: str, size: int, color: str, bold: bool = False) -> int:
        """Text on the current line; its width."""
        self.draw.text((x, self.y), text, fill=color, font=font(size, bold))
        return width_of(text, size, bold)

    def bar(self, name: str, chance: float) -> None:
        """A probability as a bar."""
        x, width = self.x + 150, 300
        self.at(self.x, f"match, {name}", 13, INK)
        self.draw.rounded_rectangle([x, self.y + 2, x + width, self.y + 15], 4, fill=_TRACK)
        if chance * width >= 2:
            self.draw.rounded_rectangle([x, self.y + 2, x + round(chance * width), self.y + 15], 4, fill=_BAR)
        self.draw.line([x + width // 2, self.y, x + width // 2, self.y + 17], fill=FAINT)
        self.at(x + width + 10, f"{chance:.0%}", 13, INK, bold=True)
        self.y += 21

    def flow(self, pieces: Sequence[str | MaskedWord], size: int = 17, color: str = INK) -> None:
        """A caption in as many lines as it needs; masked words in boxes with the guess."""
        x, end, height = self.x, self.x + TEXT_WIDTH, size + 10
        for glued, item in _items(pieces):
            text = item if isinstance(item, str) else caption_text(item)
            pad = 6 if isinstance(item, MaskedWord) else 0
            width = width_of(text, size) + 2 * pad
            x += 0 if glued or x == self.x else 6
            if x + width > end and x > self.x:
                x, self.y = self.x, self.y + height
            if isinstance(item, MaskedWord):
                fill = _RIGHT_FILL if item.is_right else _WRONG_FILL
                self.draw.rounded_rectangle([x, self.y - 1, x + width, self.y + size + 6], 5, fill=fill)
                color_here = RIGHT if item.is_right else WRONG
            else:
                color_here = color
            self.draw.text((x + pad, self.y), text, fill=color_here, font=font(size))
            x += width
        self.y += height + 4

    def frame(self, top: int) -> None:
        """Put all that was drawn since `top` onto a white card."""
        box = (MARGIN // 2, top, self.image.width - MARGIN // 2, self.y)
        below = self.image.crop(box)
        card = Image.new("RGB", below.size, _PAPER)
        ImageDraw.Draw(card).rounded_rectangle([0, 0, card.width - 1, card.height - 1], 10, fill=_CARD, outline=_LINE)
        paper = np.asarray(below) == np.array(Image.new("RGB", (1, 1), _PAPER).getpixel((0, 0)))
        drawn = Image.fromarray(np.where(paper.all(-1), 0, 255).astype(np.uint8))
        card.paste(below, (0, 0), drawn)
        self.image.paste(card, box[:2])

    def finished(self) -> Image.Image:
        """The picture, cut to what was used."""
        return self.image.crop((0, 0, self.image.width, self.y + GAP))


def _items(pieces: Sequence[str | MaskedWord]) -> list[tuple[bool, str | MaskedWord]]:
    """Words and masked pieces of a caption, each with whether it stands close to what comes before it."""
    items: list[tuple[bool, str | MaskedWord]] = []
    for piece in (word for p in pieces for word in ([p] if isinstance(p, MaskedWord) else p.split(" "))):
        text = piece if isinstance(piece, str) else piece.truth
        glued = text.startswith("##") or text in _ENDS
        before = items[-1] if items else None
        if isinstance(piece, str) and glued and before and isinstance(before[1], str):
            items[-1] = before[0], before[1] + piece.removeprefix("##")  # one word, kept on one line
        else:
            items.append((glued, piece.removeprefix("##") if isinstance(piece, str) else piece))
    return items


def caption_text(word: MaskedWord) -> str:
    """A masked word as it is printed: the truth, what stood there where that was another word, and the guess."""
    truth, read, guess = (text.removeprefix("##") for text in (word.truth, word.seen, word.guess))
    seen = "" if word.seen in ("[MASK]", word.truth) else f" (seen as {read})"
    answer = "" if word.is_right else f" → {guess}"
    return f"{truth}{seen}{answer} {word.chance:.0%}"


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@cache
def font(size: int, bold: bool = False) -> Any:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"  # brought along by matplotlib; most alphabets
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def width_of(text: str, size: int, bold: bool = False) -> int:
    return math.ceil(font(size, bold).getlength(text))
