"""What happens to rows on the way to the model: factors of colour per clip, other colours, the same codes."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from evilm.dataloader.collate import PretrainBatch, PretrainCollate
from evilm.dataloader.color_jitter import jitter_colours
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece

CAPTIONS = ["a red star", "a blue ring", "two birds"]


@dataclass(frozen=True)
class Rows:
    """As the data loader gives them."""

    epoch: int
    clip_ids: list[str]
    captions: list[str]
    all_captions: list[list[str]]
    mine: slice
    frames: np.ndarray
    code_ids: np.ndarray


@pytest.fixture
def rows() -> Rows:
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)
    return Rows(
        0, ["a", "b", "c"], CAPTIONS, [[text] for text in CAPTIONS], slice(0, 3), frames, np.arange(24).reshape(3, 8)
    )


def collate(rows: Rows, jitter: float) -> PretrainBatch:
    vocab = Vocab(train_wordpiece(CAPTIONS, 60, 1))
    return PretrainCollate(vocab, 5, 16, 2, 0.15, 0.4, "block", jitter)(rows)


def test_factors_belong_to_clip_and_epoch(rows: Rows) -> None:
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


def test_no_factors_without_jitter_or_in_an_evaluation(rows: Rows) -> None:
    assert collate(rows, 0.0).jitter is None
    assert collate(replace(rows, epoch=-1), 0.3).jitter is None


def test_factors_of_one_change_nothing(rows: Rows) -> None:
    frames = torch.from_numpy(rows.frames)
    assert torch.equal(jitter_colours(frames, torch.ones(3, 3)), frames)


def test_brightness_contrast_and_saturation() -> None:
    frames = torch.tensor([[40, 80, 120], [100, 60, 20]], dtype=torch.uint8).view(1, 1, 1, 2, 3)

    def shown(*factors: float) -> list[list[int]]:
        return jitter_colours(frames, torch.tensor([factors]))[0, 0, 0].tolist()

    assert shown(0.5, 1, 1) == [[20, 40, 60], [50, 30, 10]]
    assert shown(3, 1, 1) == [[120, 240, 255], [255, 180, 60]]
    grey = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in ((40, 80, 120), (100, 60, 20))]
    assert shown(1, 1, 0) == [[value] * 3 for value in grey]
    assert {value for pixel in shown(1, 0, 1) for value in pixel} == {round(sum(grey) / 2)}


def test_all_frames_of_a_clip_change_alike_and_clips_each_their_own(rows: Rows) -> None:
    frames = torch.from_numpy(rows.frames[:1]).expand(40, -1, -1, -1, -1)
    factors = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    shown = jitter_colours(frames, factors)
    assert shown.dtype == torch.uint8
    for clip in (0, 17, 39):
        assert torch.equal(shown[clip : clip + 1], jitter_colours(frames[:1], factors[clip : clip + 1]))
    still = jitter_colours(frames[:1, :1].repeat(1, 2, 1, 1, 1), factors[:1])
    assert torch.equal(still[0, 0], still[0, 1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pinned_batch_is_the_same_batch_in_page_locked_memory(rows: Rows) -> None:
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
