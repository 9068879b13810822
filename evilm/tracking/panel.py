"""The qualitative panel: a figure of what the model makes of a few held-out clips, the same ones in every panel.

Of each clip: its frames, what was masked of them, the words of true and predicted codes, masked words and guesses, and
the matching probability with its own caption and with another clip's.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from evilm.dataloader.collate import PretrainBatch
from evilm.dataloader.masking import IGNORE
from evilm.io.figures import to_png
from evilm.model.evilm_model import DecoderOutput, EViLMModel
from evilm.model.tokenizers.code_words import CodeWords
from evilm.text.vocab import Vocab

_MOST_FRAMES, _MOST_CODES, _GAP = 6, 8, 4
_RIGHT, _WRONG, _INK, _FAINT = "#15803d", "#c2410c", "#111827", "#6b7280"
_LINE_CHARS, _LINES = 96, 18
_ENDS = (".", ",", "!", "?", ";", ":", ")")  # printed without a space before them
_ABOUT = "above: masked regions outlined, green where the guessed code is right; below: what the model sees"


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for a batch, with their probabilities."""

    codes: np.ndarray
    code_chances: np.ndarray
    """(clip, region), also of regions that were not masked."""
    words: np.ndarray
    word_chances: np.ndarray
    """(clip, piece)."""
    match: np.ndarray
    """Probability that a caption, with words masked, belongs to its clip."""
    wrong_match: np.ndarray
    """The probability with a caption of another clip; NaN where the batch has none."""


@dataclass(frozen=True)
class MaskedWord:
    """A masked word piece and its prediction."""

    truth: str
    guess: str
    chance: float
    """Probability of the guess."""
    seen: str
    """Input of the model in its place: [MASK], another piece, or the truth."""

    @property
    def is_right(self) -> bool:
        """Return whether the guess is the truth."""
        return self.guess == self.truth

    def __str__(self) -> str:
        truth, read, guess = (text.removeprefix("##") for text in (self.truth, self.seen, self.guess))
        seen = "" if self.seen in ("[MASK]", self.truth) else f" (seen as {read})"
        return f"[{truth}{seen} {'✓' if self.is_right else f'→ {guess}'} {self.chance:.0%}]"


@torch.no_grad()
def predict(model: EViLMModel, batch: PretrainBatch) -> Predictions:
    """Return what a model in training makes of a batch; its train or eval mode is as it was afterwards."""
    was_training, here = model.training, batch.to(model.device)
    model.eval()
    try:
        video = model.encode_video(here.frames, here.mask)
        out = model.decode(video, model.encode_text(here.input_ids, here.padding_mask), here.padding_mask)
        match = _match(model, out)
        wrong = torch.full_like(match, float("nan"))
        if len(here.negative_of):
            text = model.encode_text(here.negative_ids, here.negative_padding)
            wrong[here.negative_of] = _match(model, model.decode(video[here.negative_of], text, here.negative_padding))
        code_chances, codes = model.mvm_logits(out.regions).float().softmax(-1).max(-1)
        word_chances, words = model.mlm_logits(out.words).float().softmax(-1).max(-1)
    finally:
        model.train(was_training)
    found = (codes, code_chances, words, word_chances, match, wrong)
    return Predictions(*(values.cpu().numpy() for values in found))  # all at once: each copy waits for the device


def _match(model: EViLMModel, out: DecoderOutput) -> torch.Tensor:
    return model.match_logits(out.cls).float().softmax(-1)[:, 1]


def caption_pieces(vocab: Vocab, batch: PretrainBatch, predicted: Predictions, clip: int) -> Iterator[str | MaskedWord]:
    """Yield the pieces of a clip's caption, masked ones with the model's guess."""
    rows = (batch.input_ids[clip].tolist(), batch.word_targets[clip].tolist(), batch.padding_mask[clip].tolist())
    for place, (seen, truth, is_padding) in enumerate(zip(*rows, strict=True)):
        if is_padding or seen in (vocab.cls_id, vocab.sep_id):
            continue
        if truth == IGNORE:
            yield vocab.pieces[seen]
        else:
            names = vocab.pieces[truth], vocab.pieces[predicted.words[clip, place]]
            yield MaskedWord(*names, float(predicted.word_chances[clip, place]), vocab.pieces[seen])


def draw_panel(model: EViLMModel, code_words: CodeWords, vocab: Vocab, batch: PretrainBatch, title: str = "") -> bytes:
    """Draw what `model` makes of every clip of a batch, as PNG.

    Args:
        model: on any device, in any mode, in which it is left.
        batch: as pre-training makes it, on CPU.
    """
    predicted, count = predict(model, batch), len(batch.clip_ids)
    captions = [list(caption_pieces(vocab, batch, predicted, clip)) for clip in range(count)]
    height = 0.6 + 3.3 * count
    figure = Figure(figsize=(14, height))
    about = f"{title}    {_tally(batch, predicted, captions)}    ({_ABOUT})"
    figure.text(0.01, 1 - 0.1 / height, about, fontsize=10, va="top", parse_math=False)
    grid = figure.add_gridspec(
        count, 2, width_ratios=[1, 1.02], left=0.01, right=0.99, top=1 - 0.5 / height,
        bottom=0.01, wspace=0.03, hspace=0.06,
    )  # fmt: skip
    wrong = dict(zip(batch.negative_of.tolist(), batch.negative_ids.tolist(), strict=True))
    for clip in range(count):
        chosen = _draw_frames(figure.add_subplot(grid[clip, 0]), batch, predicted, clip)
        lines = [
            (f"clip {batch.clip_ids[clip]}", _FAINT),
            *_wrapped(caption_text(captions[clip]), _INK),
            *_matching(predicted, clip, vocab.decode(wrong.get(clip, []))),
            ("masked regions: true code → guess", _FAINT),
            *_codes(batch, predicted, clip, chosen, code_words),
        ]
        _write(figure.add_subplot(grid[clip, 1]), lines)
    return to_png(figure, dpi=100)


def _tally(batch: PretrainBatch, predicted: Predictions, captions: Sequence[Sequence[str | MaskedWord]]) -> str:
    """Return how much of the panel is right."""
    masked = batch.mask.flatten(1).numpy()
    known = ~np.isnan(predicted.wrong_match)
    rights = {
        "codes": (batch.code_ids.flatten(1).numpy() == predicted.codes)[masked],
        "words": [word.is_right for caption in captions for word in caption if isinstance(word, MaskedWord)],
        "pairs": [*(predicted.match > 0.5), *(predicted.wrong_match[known] <= 0.5)],
    }
    return "right: " + ", ".join(f"{sum(of)} of {len(of)} {name}" for name, of in rights.items() if len(of))


def _spread(total: int, most: int) -> list[int]:
    """Return at most so many indices below `total`, spread evenly."""
    count = min(total, most)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


def _draw_frames(axes: Axes, batch: PretrainBatch, predicted: Predictions, clip: int) -> list[int]:
    """Draw frames, below them what the model saw; return the masked regions that are numbered."""
    frames, mask = batch.frames[clip].numpy(), batch.mask[clip].numpy()
    right = batch.code_ids[clip].flatten().numpy() == predicted.codes[clip]
    shown, (num_frames, grid, _) = _spread(len(frames), _MOST_FRAMES), mask.shape
    side = frames.shape[1]
    px, pitch, cells = side / grid, side + _GAP, np.arange(side) * grid // side  # the grid need not divide the side
    seen = frames * ~mask[:, cells][:, :, cells, None]
    gaps = [(0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)]
    tiles = np.pad(np.stack([frames[shown], seen[shown]]), gaps, constant_values=255)
    axes.imshow(np.vstack([np.hstack(list(row)) for row in tiles]))
    axes.set_axis_off()
    axes.set_anchor("NW")
    of_frame = np.arange(mask.size).reshape(num_frames, -1)
    chosen: list[int] = []
    for column, frame in enumerate(shown):
        masked = of_frame[frame][mask[frame].ravel()].tolist()
        chosen += [masked[k] for k in _spread(len(masked), max(1, _MOST_CODES // len(shown)))]
        for region in masked:
            row, col = divmod(region % grid**2, grid)
            x, y, color = column * pitch + col * px, row * px, _RIGHT if right[region] else _WRONG
            axes.add_patch(Rectangle((x + 0.5, y + 0.5), px - 2, px - 2, fill=False, edgecolor=color, linewidth=1.5))
            if region in chosen:
                below, number = (x + px / 2, y + pitch + px / 2), str(chosen.index(region) + 1)
                axes.text(*below, number, color="white", weight="bold", ha="center", va="center")
    return chosen


def _wrapped(text: str, color: str) -> list[tuple[str, str]]:
    return [(line, color) for line in textwrap.wrap(text, _LINE_CHARS)]


def _matching(predicted: Predictions, clip: int, wrong_caption: str) -> list[tuple[str, str]]:
    match, wrong = predicted.match[clip], predicted.wrong_match[clip]
    lines = [(f"match with this caption: {match:.0%}", _RIGHT if match > 0.5 else _WRONG)]
    if wrong_caption:
        lines.append((f"match with another one: {wrong:.0%}", _RIGHT if wrong <= 0.5 else _WRONG))
    return lines + _wrapped(wrong_caption, _FAINT)


def _codes(
    batch: PretrainBatch, predicted: Predictions, clip: int, regions: Sequence[int], code_words: CodeWords
) -> Iterable[tuple[str, str]]:
    """Yield a line for each of some masked regions: its true code and the model's, with their words."""
    true, guessed = batch.code_ids[clip].flatten()[regions].tolist(), predicted.codes[clip][regions].tolist()
    rows = zip(regions, true, guessed, code_words.words(true), code_words.words(guessed), strict=True)
    for place, (region, code, guess, words, guess_words) in enumerate(rows, start=1):
        described, answer = " ".join([f"#{code}", *words]), " ".join([f"#{guess}", *guess_words])
        told = f"{place}  {described} → {'same' if code == guess else answer}"
        yield f"{told} {predicted.code_chances[clip, region]:.0%}", _RIGHT if code == guess else _WRONG


def _write(axes: Axes, lines: Sequence[tuple[str, str]]) -> None:
    """Write lines in their colours, one below the other."""
    axes.set_axis_off()
    step = 1 / max(_LINES, len(lines))
    for line, (text, color) in enumerate(lines):
        axes.text(0, 1 - line * step, text, color=color, fontsize=9, va="top", parse_math=False)


def caption_text(pieces: Sequence[str | MaskedWord]) -> str:
    """Return a caption with its masked pieces in brackets, as `[truth (seen as …) → guess 17%]`."""
    text = ""
    for piece in pieces:
        name = piece if isinstance(piece, str) else piece.truth
        text += "" if name.startswith("##") or name in _ENDS else " "
        text += piece.removeprefix("##") if isinstance(piece, str) else str(piece)
    return text.strip()
