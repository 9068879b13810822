"""Colour jitter: brightness, contrast and saturation, the same for all frames of a clip."""

import numpy as np
import pytest
import torch

from evilm.dataloader.color_jitter import jitter_colours


@pytest.fixture
def frames() -> torch.Tensor:
    """Noise, three clips of two frames."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8))


def test_factors_of_one_change_nothing(frames: torch.Tensor) -> None:
    assert torch.equal(jitter_colours(frames, torch.ones(3, 3)), frames)


def test_jitter_changes_brightness_contrast_and_saturation() -> None:
    frames = torch.tensor([[40, 80, 120], [100, 60, 20]], dtype=torch.uint8).view(1, 1, 1, 2, 3)

    def shown(*factors: float) -> list[list[int]]:
        return jitter_colours(frames, torch.tensor([factors]))[0, 0, 0].tolist()

    assert shown(0.5, 1, 1) == [[20, 40, 60], [50, 30, 10]]
    assert shown(3, 1, 1) == [[120, 240, 255], [255, 180, 60]]
    grey = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in ((40, 80, 120), (100, 60, 20))]
    assert shown(1, 1, 0) == [[value] * 3 for value in grey]
    assert {value for pixel in shown(1, 0, 1) for value in pixel} == {round(sum(grey) / 2)}


def test_frames_of_a_clip_share_their_jitter_factors(frames: torch.Tensor) -> None:
    frames = frames[:1].expand(40, -1, -1, -1, -1)
    factors = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    shown = jitter_colours(frames, factors)
    assert shown.dtype == torch.uint8
    for clip in (0, 17, 39):
        assert torch.equal(shown[clip : clip + 1], jitter_colours(frames[:1], factors[clip : clip + 1]))
    still = jitter_colours(frames[:1, :1].repeat(1, 2, 1, 1, 1), factors[:1])
    assert torch.equal(still[0, 0], still[0, 1])
