"""Photometric jitter of the student's frames. The tokenizer never sees it: codes say what is there, in any light."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

_GREY = (0.299, 0.587, 0.114)  # Rec. 601 luma, as in Pillow and torchvision
_CLIPS = 16  # float copies of frames are made of so many clips at a time


def jitter_colours(
    frames: UInt8[Tensor, "clip frame row col 3"], factors: Float[Tensor, "clip 3"]
) -> UInt8[Tensor, "clip frame row col 3"]:
    """Change brightness, contrast and saturation, equally in all frames of a clip; round to uint8.

    As one linear step: saturation mixes a pixel with its own grey, contrast with the clip's mean grey, brightness
    scales the result; what leaves 0-255 is cut off once, at the end. Factors of 1 change nothing.
    """
    parts = zip(frames.split(_CLIPS), factors.split(_CLIPS), strict=True)
    with torch.autocast(frames.device.type, enabled=False):
        return torch.cat([_jitter(some, how) for some, how in parts])


def _jitter(frames: Tensor, factors: Tensor) -> Tensor:
    pixels = frames.float()
    weights = torch.cat([pixels.new_full((1,), weight) for weight in _GREY])  # a list would be copied from the host
    grey = (pixels * weights).sum(-1, keepdim=True)
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1, 1).unbind(1)
    mean = grey.mean(dim=(1, 2, 3, 4), keepdim=True)
    mixed = contrast * (saturation * pixels + (1 - saturation) * grey) + (1 - contrast) * mean
    return (brightness * mixed).round_().clamp_(0, 255).to(torch.uint8)
