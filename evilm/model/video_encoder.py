"""EdgeNeXt as an encoder of regions, Eq. 1."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from evilm.errors import CheckpointError, ConfigError
from evilm.model.pretrained import load_into

STRIDE_PX = 32
"""Pixels per region and side: EdgeNeXt's last stage."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoEncoder(nn.Module):
    """A timm EdgeNeXt without classifier, frame by frame. Paper: Eq. 1, Sec. 3.1.

    The LayerNorm of the classifier head is applied per region: Table 8 counts its 608 parameters, and left unused
    they would get no gradient, which stops distributed training.
    """

    def __init__(self, name: str, weights: str = "") -> None:
        import timm  # seconds, which only who builds a model should pay

        super().__init__()
        if not name.startswith("edgenext"):
            raise ConfigError(f"video_encoder = {name!r} is no EdgeNeXt of timm; the paper uses edgenext_small")
        self.backbone: Any  # timm's classes are not typed
        try:
            self.backbone = timm.create_model(name, pretrained=weights == "timm", num_classes=0)
        except RuntimeError as error:  # timm's answer to an unknown name, or to weights it does not have
            raise ConfigError(f"video_encoder = {name!r}: {error}; see timm.list_models('edgenext*')") from None
        self.channels = int(self.backbone.num_features)
        if weights not in ("", "timm"):
            _load(self.backbone, weights)

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images row col channels"]:
        """Normalised pixels to one vector per region."""
        # timm makes its positions on the default device. If that is not the GPU, the host waits for a copy in each
        # step; compiled, they are made on the GPU as it is, and the compiler knows no such context.
        with contextlib.nullcontext() if torch.compiler.is_compiling() else pixels.device:
            features: Tensor = self.backbone.forward_features(pixels)
        return self.backbone.head.norm(features).permute(0, 2, 3, 1)


def _load(backbone: nn.Module, path: str) -> None:
    """Weights of timm's naming from a local safetensors file; its classifier is left out."""
    if not Path(path).is_file():
        raise CheckpointError(f"video_weights = {path!r} is no file; give '', 'timm', or a local safetensors file")
    state: dict[str, torch.Tensor] = load_file(path)
    load_into(backbone, {name: value for name, value in state.items() if not name.startswith("head.fc.")}, path)
