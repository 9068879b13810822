"""Batches: what the feed's rows become before they meet a model. Runs in the feed's background threads."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from evilm.masking import Shape, mask_words, region_mask
from evilm.steps.seeds import clip_rng, derangement
from evilm.text.vocab import Vocab


class Batch:
    """A dataclass of tensors and plain values."""

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, item.name)
            moved[item.name] = value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        return type(self)(**moved)


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
        self, vocab: Vocab, seed: int, max_words: int, grid: int, mlm_ratio: float, mask_ratio: float, mask_shape: Shape
    ) -> None:
        self._vocab, self._seed, self._max_words, self._grid = vocab, seed, max_words, grid
        self._mlm_ratio, self._mask_ratio = mlm_ratio, mask_ratio
        self._mask_shape: Shape = mask_shape

    def __call__(self, rows: Any) -> PretrainBatch:
        """Collate the rows of one global step (`evilm.data.feed.Rows`)."""
        mine = range(*rows.mine.indices(len(rows.clip_ids)))
        partners = derangement(self._seed, rows.epoch, rows.clip_ids, rows.captions)
        negatives = [(place, partners[clip]) for place, clip in enumerate(mine)]
        negatives = [(place, partner) for place, partner in negatives if partner is not None]
        own = [self._words(rows, clip) for clip in mine]
        others = [self._words(rows, partner) for _, partner in negatives]
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
        )

    def _words(self, rows: Any, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """Input and target words of a caption with some hidden.

        A negative has words hidden as its own clip would have them; else a hidden word would give the match away.
        """
        rng = clip_rng("words", self._seed, rows.epoch, rows.clip_ids[clip])
        ids = np.asarray(self._vocab.encode(rows.captions[clip], self._max_words), dtype=np.int64)
        return mask_words(ids, self._vocab.special_ids, self._vocab.mask_id, self._vocab.size, self._mlm_ratio, rng)

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
