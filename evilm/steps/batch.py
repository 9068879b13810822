"""Batches: what the feed's rows become before they meet a model. Runs in the feed's background threads."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from evilm.masking import IGNORE, Shape, WordMasker, region_mask
from evilm.steps.negatives import NEGATIVES, Negatives
from evilm.steps.seeds import clip_rng
from evilm.text.vocab import Vocab


class Batch:
    """A dataclass of tensors and plain values."""

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, from where a GPU copies while the host goes on."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]  # a dataclass
        return type(self)(**{n: change(v) if isinstance(v, Tensor) else v for n, v in values.items()})


@dataclass
class TokenizerBatch(Batch):
    """Clips and the words of their captions."""

    frames: UInt8[Tensor, "clip frame row col 3"]
    caption_words: Bool[Tensor, "clip vocab"]
    clip_ids: list[str]


@dataclass
class PretrainBatch(Batch):
    """Clips with hidden regions, captions with hidden words, and a caption that does not match for each clip."""

    frames: UInt8[Tensor, "clip frame row col 3"]
    mask: Bool[Tensor, "clip frame row col"]
    """True = hidden from the model."""
    code_ids: Int[Tensor, "clip region"]
    word_ids: Int[Tensor, "clip word"]
    word_padding: Bool[Tensor, "clip word"]
    """True = padding."""
    word_targets: Int[Tensor, "clip word"]
    """The word that stood there, -1 where none is to be predicted."""
    negative_ids: Int[Tensor, "negative word"]
    negative_padding: Bool[Tensor, "negative word"]
    negative_of: Int[Tensor, " negative"]
    """Index of the clip that each negative caption is held against."""
    clip_ids: list[str]
    jitter: Float[Tensor, "clip 3"] | None = None
    """Factors of brightness, contrast and saturation for the student's frames; None leaves them as they are."""
    mlm_positions: Int[Tensor, " masked_word"] | None = None
    """Flat positions in (clip, word) of the words to predict; derived from `word_targets` where not given."""
    masked_regions: Int[Tensor, " masked_region"] | None = None
    """Flat positions in (clip, region) of the masked regions; derived from `mask` where not given."""

    def __post_init__(self) -> None:
        # Made once, where the batch is made, on the CPU: indexing by a boolean mask on a GPU waits for its size.
        if self.mlm_positions is None:
            self.mlm_positions = (self.word_targets != IGNORE).flatten().nonzero().flatten()
        if self.masked_regions is None:
            self.masked_regions = self.mask.flatten().nonzero().flatten()


class TokenizerCollate:
    """Rows to a `TokenizerBatch`; word targets leave out special words."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab

    def __call__(self, rows: Any) -> TokenizerBatch:
        """Collate the rows of one step (`evilm.data.feed.Rows`)."""
        words = torch.from_numpy(self._vocab.caption_words(rows.captions[rows.mine]))
        return TokenizerBatch(torch.from_numpy(rows.frames), words, rows.clip_ids[rows.mine])


class PretrainCollate:
    """Rows to a `PretrainBatch`. Every draw belongs to (seed, epoch, clip id), so workers don't change it."""

    def __init__(
        self,
        vocab: Vocab,
        seed: int,
        max_words: int,
        grid: int,
        mlm_ratio: float,
        mask_ratio: float,
        mask_shape: Shape,
        jitter: float = 0.0,
        negatives: Negatives = "random",
    ) -> None:
        """How words and regions are hidden is `ObjectivesConfig`'s; how much colours vary, `AugmentConfig`'s."""
        self._vocab, self._seed, self._max_words, self._grid = vocab, seed, max_words, grid
        self._mlm_ratio, self._mask_ratio, self._jitter = mlm_ratio, mask_ratio, jitter
        self._mask_shape: Shape = mask_shape
        self._negatives: Negatives = negatives

    def __call__(self, rows: Any) -> PretrainBatch:
        """Collate the rows of one global step (`evilm.data.feed.Rows`)."""
        mine = range(*rows.mine.indices(len(rows.clip_ids)))
        partners = NEGATIVES[self._negatives](self._seed, rows.epoch, rows.clip_ids, rows.captions)
        negatives = [(place, partners[clip]) for place, clip in enumerate(mine)]
        negatives = [(place, partner) for place, partner in negatives if partner is not None]
        words = self._words(rows, sorted({*mine, *(partner for _, partner in negatives)}))
        own = [words[clip] for clip in mine]
        others = [words[partner] for _, partner in negatives]
        word_ids, word_padding = self._pad([inputs for inputs, _ in own], self._vocab.pad_id)
        targets, _ = self._pad([targets for _, targets in own], -1)
        negative_ids, negative_padding = self._pad([inputs for inputs, _ in others], self._vocab.pad_id)
        masks = [self._mask(rows, clip) for clip in mine]
        return PretrainBatch(
            frames=torch.from_numpy(rows.frames),
            mask=torch.from_numpy(np.stack(masks)),
            code_ids=torch.from_numpy(rows.code_ids),
            word_ids=word_ids,
            word_padding=word_padding,
            word_targets=targets,
            negative_ids=negative_ids,
            negative_padding=negative_padding,
            negative_of=torch.tensor([place for place, _ in negatives], dtype=torch.int64),
            clip_ids=[rows.clip_ids[clip] for clip in mine],
            jitter=self._factors(rows, mine) if self._jitter else None,
        )

    def _factors(self, rows: Any, mine: range) -> Tensor | None:
        """Each clip's own factors in training; none in an evaluation, which shows frames as they are."""
        if rows.epoch < 0:
            return None
        rngs = (clip_rng("jitter", self._seed, rows.epoch, rows.clip_ids[clip]) for clip in mine)
        factors = np.stack([rng.uniform(1 - self._jitter, 1 + self._jitter, 3) for rng in rngs])
        return torch.from_numpy(factors.astype(np.float32))

    def _words(self, rows: Any, clips: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Input and target words of some clips' captions with some hidden.

        A negative has words hidden as its own clip would have them; else a hidden word would give the match away.
        """
        vocab = self._vocab
        word_ids, lengths = vocab.encode_batch([rows.captions[clip] for clip in clips], self._max_words)
        hide = WordMasker(vocab.special_ids, vocab.mask_id, vocab.size, self._mlm_ratio)
        rngs = [clip_rng("words", self._seed, rows.epoch, rows.clip_ids[clip]) for clip in clips]
        found = (hide(ids[:length], rng) for ids, length, rng in zip(word_ids, lengths, rngs, strict=True))
        return dict(zip(clips, found, strict=True))

    def _mask(self, rows: Any, clip: int) -> np.ndarray:
        rng = clip_rng("regions", self._seed, rows.epoch, rows.clip_ids[clip])
        return region_mask(self._mask_shape, self._grid, rows.frames.shape[1], self._mask_ratio, rng)

    @staticmethod
    def _pad(rows: list[np.ndarray], value: int) -> tuple[Tensor, Tensor]:
        """Rows of different lengths as one tensor, and where it is padding."""
        longest = max((len(row) for row in rows), default=1)
        padded = np.full((len(rows), longest), value, dtype=np.int64)
        padding = np.ones((len(rows), longest), dtype=bool)
        for index, row in enumerate(rows):
            padded[index, : len(row)], padding[index, : len(row)] = row, False
        return torch.from_numpy(padded), torch.from_numpy(padding)
