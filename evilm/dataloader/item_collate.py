"""Collate items of downstream tasks into batches. Runs in the data loader's background threads."""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from evilm.dataloader.collate import Batch
from evilm.dataloader.item_loader import ItemRows
from evilm.items.item import Kind
from evilm.text.item_texts import encode_choices, encode_texts
from evilm.text.vocab import Vocab


@dataclass
class ItemBatch(Batch):
    """Items with the frames of their clips and their texts; each clip and each text is encoded once."""

    frames: UInt8[Tensor, "clip frame row col 3"]
    clip_of: Int[Tensor, " text"]
    """Index of the clip that each text is about; without texts, that of each item's clip."""
    input_ids: Int[Tensor, "text word"]
    """Questions, or question and option for each option, item by item. Captions come first, then each one's
    negatives. Classes have no texts."""
    padding_mask: Bool[Tensor, "text word"]
    """True = padding."""
    labels: Int[Tensor, " item"]
    """Index of the answer, class or right option; -1 where the answer has no label."""
    labelled: Int[Tensor, " labelled"]
    """Indices of the items that have a label."""
    masked_at: Int[Tensor, " item"]
    """Position of [MASK] in each question; empty if questions end without it."""
    item_ids: list[str]
    clip_ids: list[str]
    first_item: int = 0
    """Index of the first of these items within the global step."""
    step_items: int = 0
    """Items of the global step, over all micro-batches and workers."""

    @property
    def num_items(self) -> int:
        """Return the number of items."""
        return len(self.item_ids)


class ItemCollate:
    """Convert `ItemRows` to an `ItemBatch`."""

    def __init__(
        self, vocab: Vocab, max_text_len: int, kind: Kind, pieces: Int[np.ndarray, " answer"] | None = None
    ) -> None:
        """Prepare to collate.

        Args:
            max_text_len: longest text, in word pieces.
            pieces: word piece of each answer, -1 for an answer of several, which then counts as without label; each
                question ends with [MASK], which stands for the answer. None: questions end without it.
        """
        self._vocab, self._max_text_len, self._kind, self._pieces = vocab, max_text_len, kind, pieces

    def __call__(self, rows: ItemRows) -> ItemBatch:
        """Collate the items of one step."""
        texts, clip_of = self._texts(rows)
        if self._kind == "choice":
            input_ids, lengths = encode_choices(self._vocab, rows.texts, rows.options, self._max_text_len)
        else:
            input_ids, lengths = encode_texts(self._vocab, texts, self._max_text_len, self._pieces is not None)
        labels = rows.labels
        if self._pieces is not None:
            labels = np.where((labels >= 0) & (self._pieces[labels] >= 0), labels, -1)
        return ItemBatch(
            frames=torch.from_numpy(rows.frames),
            clip_of=torch.from_numpy(clip_of),
            input_ids=torch.from_numpy(input_ids),
            padding_mask=torch.from_numpy(np.arange(input_ids.shape[1]) >= lengths[:, None]),
            labels=torch.from_numpy(labels),
            labelled=torch.from_numpy(np.flatnonzero(labels >= 0)),
            masked_at=torch.from_numpy(lengths[:0] if self._pieces is None else lengths - 2),
            item_ids=rows.item_ids,
            clip_ids=rows.clip_ids,
            first_item=rows.first_item,
            step_items=rows.step_items,
        )

    def _texts(self, rows: ItemRows) -> tuple[list[str], np.ndarray]:
        """Return the texts to encode, and the clip of each."""
        if self._kind == "label":
            return [], rows.clip_of
        counts = [len(options) for options in rows.options]
        if self._kind == "choice":
            return list(chain(*rows.options)), rows.clip_of.repeat(counts)
        if self._kind == "retrieval":
            return [*rows.texts, *chain(*rows.options)], np.concatenate([rows.clip_of, rows.clip_of.repeat(counts)])
        return rows.texts, rows.clip_of
