"""Video encoders, Eq. 1: EdgeNeXt as in the paper, any other image model of timm, or your own."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from evilm.errors import CheckpointError, ConfigError
from evilm.model.pretrained import load_into
from evilm.plugins import Registry

STRIDE_PX = 32
"""Side of a region in pixels: the stride of EdgeNeXt's last stage."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoEncoder(Protocol):
    """A module that encodes frames one by one; `EViLMModel` projects its vectors to the decoder's width."""

    channels: int
    """Width of a region's vector."""
    mean: tuple[float, ...]
    """Mean per channel of its input pixels in 0 to 1; `std` is the standard deviation."""
    std: tuple[float, ...]

    def __call__(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images row col channels"]:
        """Encode normalised pixels to one vector per region of `STRIDE_PX` x `STRIDE_PX` pixels."""
        ...


ENCODERS: Registry[Callable[[str, str, int], Any]] = Registry(
    "video encoder", "evilm.video_encoders", {"edgenext": f"{__name__}:EdgeNeXt"}
)
"""Builders of encoders, called with `arch.video_encoder`, `arch.video_weights` and the side of the frames."""


def build_video_encoder(name: str, weights: str, input_px: int) -> Any:
    """Build a video encoder, a module that implements `VideoEncoder`.

    Args:
        name: a model of timm, a name in `ENCODERS`, or `module:builder`.
        weights: '' for random ones, 'timm' for timm's pretrained ones, else a local safetensors file with timm's names.
        input_px: side of the frames, a multiple of `STRIDE_PX`.

    Raises:
        ConfigError: there is no such encoder, or it has no features at that stride.
        CheckpointError: the weights file is missing or does not fit.
    """
    kind = "edgenext" if name.startswith("edgenext") else name
    return (ENCODERS.get(kind) if kind in ENCODERS else TimmEncoder)(name, weights, input_px)


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of an encoder's input pixels, without building it."""
    if name in ENCODERS:
        builder = ENCODERS.get(name)
        return getattr(builder, "mean", IMAGENET_MEAN), getattr(builder, "std", IMAGENET_STD)
    from timm.models import get_pretrained_cfg

    known = None if name.startswith("edgenext") else get_pretrained_cfg(name)
    return (tuple(known.mean), tuple(known.std)) if known else (IMAGENET_MEAN, IMAGENET_STD)


class EdgeNeXt(nn.Module):
    """A timm EdgeNeXt without classifier, frame by frame. Paper: Eq. 1, Sec. 3.1.

    The LayerNorm of the classifier head is applied per region: Table 8 counts its 608 parameters, and an unused layer
    would get no gradient, which stops distributed training.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, name: str, weights: str = "", input_px: int = 256) -> None:
        super().__init__()
        self.backbone = _create(name, weights)
        self.channels = int(self.backbone.num_features)
        _load(self.backbone, weights)

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images row col channels"]:
        """Encode normalised pixels to one vector per region."""
        with _default_device(pixels):
            features: Tensor = self.backbone.forward_features(pixels)
        return self.backbone.head.norm(features).permute(0, 2, 3, 1)


class TimmEncoder(nn.Module):
    """The last feature map of any image model of timm, with a LayerNorm per region.

    A map of stride 16 or 8, such as a ViT's, is averaged to `STRIDE_PX`.
    """

    def __init__(self, name: str, weights: str = "", input_px: int = 256) -> None:
        super().__init__()
        self.mean, self.std = pixel_statistics(name)
        self.backbone = _create(name, weights, input_px)
        if not hasattr(self.backbone, "forward_intermediates"):
            raise ConfigError(f"video_encoder = {name!r} has no feature maps; use an image model of timm that does")
        _load(self.backbone, weights)
        self.backbone.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
        last = list(self.backbone.feature_info)[-1]
        self.channels, stride = int(last["num_chs"]), int(last["reduction"])
        if STRIDE_PX % stride:
            raise ConfigError(
                f"video_encoder = {name!r} has features at stride {stride}; regions of {STRIDE_PX} px need a stride of "
                f"{STRIDE_PX} or a divisor of it"
            )
        self._pool = STRIDE_PX // stride
        self.norm = nn.LayerNorm(self.channels)

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images row col channels"]:
        """Encode normalised pixels to one vector per region."""
        with _default_device(pixels):
            (features,) = self.backbone.forward_intermediates(pixels, indices=1, intermediates_only=True)
        if self._pool > 1:
            features = F.avg_pool2d(features, self._pool)
        return self.norm(features.permute(0, 2, 3, 1))


def _default_device(pixels: Tensor) -> Any:
    """Create new tensors where the pixels are, for as long as the block lasts.

    timm creates position embeddings on the default device. If that is not the GPU, the host waits for a copy in each
    step. Compiled code creates them on the GPU anyway, and the compiler does not support this context.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else pixels.device


def _create(name: str, weights: str, input_px: int = 0) -> Any:
    """Create a model of timm without classifier; one with position embeddings gets them for frames of this side."""
    import timm  # takes seconds: import only to build a model

    options: dict[str, Any] = {"pretrained": weights == "timm", "num_classes": 0}
    try:
        try:
            sized: dict[str, Any] = options | ({"img_size": input_px} if input_px else {})
            return timm.create_model(name, **sized)
        except TypeError:  # a model without position embeddings has no such option
            return timm.create_model(name, **options)
    except RuntimeError as error:  # raised by timm for an unknown name, or for weights it does not have
        raise ConfigError(
            f"video_encoder = {name!r}: {error}; the paper uses edgenext_small, timm.list_models() lists others"
        ) from None


def _load(backbone: nn.Module, path: str) -> None:
    """Load weights with timm's names from a local safetensors file, without its classifier."""
    if path in ("", "timm"):
        return
    if not Path(path).is_file():
        raise CheckpointError(f"video_weights = {path!r} is not a file; use '', 'timm' or a local safetensors file")
    state: dict[str, torch.Tensor] = load_file(path)
    known = backbone.state_dict()
    head = ("head.fc.", "head.", "fc.", "classifier.", "attn_pool.")
    load_into(backbone, {n: value for n, value in state.items() if n in known or not n.startswith(head)}, path)
