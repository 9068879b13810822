"""Batches from rows: jitter factors per clip, page-locked memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evilm.dataloader.clip_reader import Rows
from evilm.dataloader.collate import PretrainBatch, PretrainCollate
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece

CAPTIONS = ["a red star", "a blue ring", "two birds"]


@pytest.fixture
def rows() -> Rows:
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)
    return Rows(
        0, ["a", "b", "c"], CAPTIONS, [[text] for text in CAPTIONS], slice(0, 3), frames, np.arange(24).reshape(3, 8)
    )


def collate(rows: Rows, jitter: float) -> PretrainBatch:
    vocab = Vocab(train_wordpiece(CAPTIONS, 60, 1))
    return PretrainCollate(vocab, 5, 16, 2, 0.15, 0.4, "block", jitter)(rows)


def test_jitter_factors_depend_on_clip_and_epoch(rows: Rows) -> None:
    whole = collate(rows, 0.3).jitter
    assert whole is not None
    assert whole.shape == (3, 3)
    assert 0.7 <= float(whole.min()) < float(whole.max()) <= 1.3
    part = replace(rows, mine=slice(1, 2), frames=rows.frames[1:2], code_ids=rows.code_ids[1:2])
    alone, later = collate(part, 0.3).jitter, collate(replace(rows, epoch=1), 0.3).jitter
    assert alone is not None
    assert later is not None
    assert torch.equal(alone, whole[1:2])
    assert not torch.isclose(later, whole).any()


def test_no_jitter_factors_without_jitter_or_in_evaluation(rows: Rows) -> None:
    assert collate(rows, 0.0).jitter is None
    assert collate(replace(rows, epoch=-1), 0.3).jitter is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batch_is_the_same_in_page_locked_memory(rows: Rows) -> None:
    batch = collate(rows, 0.3)
    pinned = batch.pin_memory()
    there = pinned.to(torch.device("cuda"))
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(pinned, name).is_pinned(), name
            assert torch.equal(getattr(there, name).cpu(), value), name
        else:
            assert getattr(pinned, name) == value


def test_every_tensor_of_a_batch_is_pinned(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU there is no page-locked memory, so torch's call is taken down."""
    batch, asked = collate(rows, 0.3), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: asked.append(tensor) or tensor)
    pinned = batch.pin_memory()
    assert pinned.clip_ids == batch.clip_ids
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(asked) == len(tensors) == 12
    assert all(a is b for a, b in zip(asked, tensors, strict=True))
