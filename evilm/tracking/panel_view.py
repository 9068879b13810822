"""Collect what a panel shows of each clip as plain values: masked words and codes, the model's guesses, matching."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

from evilm.dataloader.collate import PretrainBatch
from evilm.dataloader.masking import IGNORE
from evilm.model.evilm_model import DecoderOutput, EViLMModel
from evilm.text.vocab import Vocab


@dataclass(frozen=True)
class MaskedWord:
    """A word piece that was asked for."""

    truth: str
    guess: str
    chance: float
    """Probability of the guess."""
    seen: str
    """What the model read in its place: [MASK], another piece, or the truth."""

    @property
    def is_right(self) -> bool:
        """Return whether the guess is the truth."""
        return self.guess == self.truth


@dataclass(frozen=True)
class ClipView:
    """A clip, what was masked of it, and what the model made of it."""

    clip_id: str
    frames: UInt8[np.ndarray, "frame row col 3"]
    mask: Bool[np.ndarray, "frame grid grid"]
    codes: Int64[np.ndarray, " masked"]
    """True code of each masked region, frame by frame, row by row."""
    guesses: Int64[np.ndarray, " masked"]
    """The model's."""
    chances: np.ndarray
    """Probability of each guess."""
    caption: list[str | MaskedWord]
    """Its pieces in order."""
    match: float
    """Probability that the caption, with words masked, belongs to the clip."""
    wrong_caption: str
    """A caption of another clip, '' where the batch has none."""
    wrong_match: float
    """The probability with it."""

    @property
    def words(self) -> list[MaskedWord]:
        """The masked words."""
        return [word for word in self.caption if isinstance(word, MaskedWord)]


@torch.no_grad()
def predict(model: EViLMModel, vocab: Vocab, batch: PretrainBatch) -> list[ClipView]:
    """Return what a model in training says of a batch; its train or eval mode is as it was afterwards."""
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
        codes = model.mvm_logits(out.regions).float().softmax(-1).max(-1)
        words = model.mlm_logits(out.words).float().softmax(-1).max(-1)
    finally:
        model.train(was_training)
    chances, guesses = (part.cpu() for part in codes)  # all at once: each copy waits for the device
    word_chances, word_guesses = (part.tolist() for part in words)
    match_scores, wrong_scores = match.tolist(), wrong.tolist()
    wrong_captions = dict(zip(batch.negative_of.tolist(), batch.negative_ids.tolist(), strict=True))
    views = []
    for clip, clip_id in enumerate(batch.clip_ids):
        masked = batch.mask[clip].flatten()
        views.append(
            ClipView(
                clip_id=clip_id,
                frames=batch.frames[clip].cpu().numpy(),
                mask=batch.mask[clip].cpu().numpy(),
                codes=batch.code_ids[clip][masked].numpy().astype(np.int64),
                guesses=guesses[clip][masked].numpy(),
                chances=chances[clip][masked].numpy(),
                caption=_caption(vocab, batch, clip, word_guesses[clip], word_chances[clip]),
                match=match_scores[clip],
                wrong_caption=vocab.decode(wrong_captions.get(clip, [])),
                wrong_match=wrong_scores[clip],
            )
        )
    return views


def _match(model: EViLMModel, out: DecoderOutput) -> torch.Tensor:
    return model.match_logits(out.cls).float().softmax(-1)[:, 1]


def _caption(
    vocab: Vocab, batch: PretrainBatch, clip: int, guesses: list[int], chances: list[float]
) -> list[str | MaskedWord]:
    """The caption's pieces, masked ones with the model's guess."""
    pieces: list[str | MaskedWord] = []
    rows = (batch.input_ids[clip].tolist(), batch.word_targets[clip].tolist(), batch.padding_mask[clip].tolist())
    for place, (seen, truth, is_padding) in enumerate(zip(*rows, strict=True)):
        if is_padding or seen in (vocab.cls_id, vocab.sep_id):
            continue
        if truth == IGNORE:
            pieces.append(vocab.pieces[seen])
        else:
            names = vocab.pieces[truth], vocab.pieces[guesses[place]]
            pieces.append(MaskedWord(*names, chances[place], vocab.pieces[seen]))
    return pieces
