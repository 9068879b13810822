"""Collate the data loader's rows into batches. Runs in the data loader's background threads."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from evilm.dataloader.clip_reader import Rows
from evilm.dataloader.masking import IGNORE, Shape, WordMasker, region_masks
from evilm.dataloader.negatives import NEGATIVES, Negatives
from evilm.seeds import clip_keys, clip_rng
from evilm.text.vocab import Vocab


class Batch:
    """A dataclass of tensors and plain values."""

    def to(self, device: torch.device) -> Self:
        """Return the same batch with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy the batch to page-locked memory, from where a GPU copies while the host continues."""
        return self._with(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the tensors' memory until `stream` is done with them, where they were made on another stream."""
        for item in fields(self):  # type: ignore[arg-type]  # a dataclass
            if isinstance(value := getattr(self, item.name), Tensor):
                value.record_stream(stream)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]  # a dataclass
        return type(self)(**{n: change(v) if isinstance(v, Tensor) else v for n, v in values.items()})


@dataclass
class TokenizerBatch(Batch):
    """Clips and the words of their captions."""

    frames: UInt8[Tensor, "clip frame row col 3"]
    caption_words: Bool[Tensor, "clip vocab"]
    clip_ids: list[str]
    first_clip: int = 0
    """Index of the first of these clips within the global step."""
    step_clips: int = 0
    """Clips of the global step, over all micro-batches and workers; 0: just these."""


@dataclass
class PretrainBatch(Batch):
    """Clips with masked regions, captions with masked words, and a caption that does not match for each clip."""

    frames: UInt8[Tensor, "clip frame row col 3"]
    mask: Bool[Tensor, "clip frame row col"]
    """True = masked."""
    code_ids: Int[Tensor, "clip region"]
    input_ids: Int[Tensor, "clip word"]
    padding_mask: Bool[Tensor, "clip word"]
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
    mlm_positions: Int[Tensor, " masked_word"] = None  # type: ignore[assignment]  # set in __post_init__
    """Flat positions in (clip, word) of the words to predict; derived from `word_targets` where not given."""
    masked_regions: Int[Tensor, " masked_region"] = None  # type: ignore[assignment]
    """Flat positions in (clip, region) of the masked regions; derived from `mask` where not given."""

    def __post_init__(self) -> None:
        # Made once, where the batch is made, on the CPU: indexing by a boolean mask on a GPU waits for its size.
        if self.mlm_positions is None:  # pyright: ignore[reportUnnecessaryComparison]
            self.mlm_positions = (self.word_targets != IGNORE).flatten().nonzero().flatten()
        if self.masked_regions is None:  # pyright: ignore[reportUnnecessaryComparison]
            self.masked_regions = self.mask.flatten().nonzero().flatten()


class TokenizerCollate:
    """Rows to a `TokenizerBatch`; word targets leave out special words."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab

    def __call__(self, rows: Rows) -> TokenizerBatch:
        """Collate the rows of one step."""
        words = torch.from_numpy(self._vocab.caption_words(rows.captions[rows.mine]))
        mine = range(*rows.mine.indices(len(rows.clip_ids)))
        clip_ids = rows.clip_ids[rows.mine]
        return TokenizerBatch(torch.from_numpy(rows.frames), words, clip_ids, mine.start, len(rows.clip_ids))


class PretrainCollate:
    """Rows to a `PretrainBatch`. Every draw belongs to (seed, epoch, clip id), so workers don't change it."""

    def __init__(
        self,
        vocab: Vocab,
        seed: int,
        max_text_len: int,
        grid: int,
        mlm_ratio: float,
        mask_ratio: float,
        mask_shape: Shape,
        jitter: float = 0.0,
        negatives: Negatives = "random",
    ) -> None:
        """Use `ObjectivesConfig` for the masks of words and regions, `AugmentConfig` for the jitter of colours."""
        self._vocab, self._seed, self._max_text_len, self._grid = vocab, seed, max_text_len, grid
        self._hide = WordMasker(vocab.special_ids, vocab.mask_id, vocab.size, mlm_ratio)
        self._mask_ratio, self._jitter = mask_ratio, jitter
        self._mask_shape: Shape = mask_shape
        self._negatives: Negatives = negatives

    def __call__(self, rows: Rows) -> PretrainBatch:
        """Collate the rows of one step."""
        mine = range(*rows.mine.indices(len(rows.clip_ids)))
        choose = NEGATIVES[self._negatives]
        partners = choose(self._seed, rows.epoch, rows.clip_ids, rows.captions, rows.all_captions, mine)
        negatives = [(place, partner) for place, partner in enumerate(partners) if partner is not None]
        clips = sorted({*mine, *(partner for _, partner in negatives)})
        inputs, targets, padding = self._words(rows, clips)
        own = _cut(padding, np.searchsorted(clips, mine))
        others = _cut(padding, np.searchsorted(clips, [partner for _, partner in negatives]))
        clip_ids = rows.clip_ids[rows.mine]
        keys = clip_keys("regions", self._seed, rows.epoch, clip_ids)
        mask = region_masks(self._mask_shape, self._grid, rows.frames.shape[1], self._mask_ratio, keys)
        return PretrainBatch(
            frames=torch.from_numpy(rows.frames),
            mask=torch.from_numpy(mask),
            code_ids=torch.from_numpy(rows.code_ids),
            input_ids=torch.from_numpy(inputs[own]),
            padding_mask=torch.from_numpy(padding[own]),
            word_targets=torch.from_numpy(targets[own]),
            negative_ids=torch.from_numpy(inputs[others]),
            negative_padding=torch.from_numpy(padding[others]),
            negative_of=torch.tensor([place for place, _ in negatives], dtype=torch.int64),
            clip_ids=clip_ids,
            jitter=self._factors(rows.epoch, clip_ids) if self._jitter else None,
        )

    def _factors(self, epoch: int, clip_ids: list[str]) -> Tensor | None:
        """Draw each clip's own factors in training; none in an evaluation, which shows frames as they are."""
        if epoch < 0:
            return None
        rngs = (clip_rng("jitter", self._seed, epoch, clip_id) for clip_id in clip_ids)
        factors = np.stack([rng.uniform(1 - self._jitter, 1 + self._jitter, 3) for rng in rngs])
        return torch.from_numpy(factors.astype(np.float32))

    def _words(self, rows: Rows, clips: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, targets and padding of some clips' captions with some words masked, each (clip, word).

        A negative has words masked as its own clip would have them; else a masked word would give the match away.
        """
        input_ids, lengths = self._vocab.encode_batch([rows.captions[clip] for clip in clips], self._max_text_len)
        keys = clip_keys("words", self._seed, rows.epoch, [rows.clip_ids[clip] for clip in clips])
        return *self._hide(input_ids, keys), np.arange(input_ids.shape[1]) >= lengths[:, None]


def _cut(padding: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, slice]:
    """Select some rows of padded words, cut to the longest of them."""
    return rows, slice(int((~padding[rows]).sum(1).max(initial=1)))
