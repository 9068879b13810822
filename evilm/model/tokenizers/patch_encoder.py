"""Image encoders of the video tokenizer: CLIP's vision tower or a ViT from scratch, both with one vector per patch."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evilm.config.models import VideoTokenizerConfig
from evilm.errors import CheckpointError, ConfigError
from evilm.model.layers import Blocks

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)


class PatchEncoder(nn.Module):
    """A ViT from scratch: patch embedding, learned positions, pre-norm blocks; no [CLS]. Paper: E of Sec. 3.3."""

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        self.width = config.encoder_dim
        self.patches = nn.Conv2d(3, config.encoder_dim, config.patch_px, stride=config.patch_px)
        nn.init.xavier_uniform_(self.patches.weight.view(config.encoder_dim, -1))
        self.positions = nn.Parameter(torch.randn(config.grid**2, config.encoder_dim) * 0.02)
        self.blocks = Blocks(config.encoder_layers, config.encoder_dim, config.encoder_heads)

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images region dim"]:
        return self.blocks(self.patches(pixels).flatten(2).transpose(1, 2) + self.positions)


class ClipEncoder(nn.Module):
    """CLIP's vision tower at any input size: position embeddings are resized, [CLS] is dropped.

    CLIP's last LayerNorm, meant for [CLS], is applied to every region: it scales down the few very large channels, and
    an unused layer would get no gradient, which stops distributed training.
    """

    def __init__(self, model: "CLIPVisionModel") -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.hidden_size

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images region dim"]:
        states = self.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        return self.model.post_layernorm(states[:, 1:])

    def shape(self) -> dict[str, Any]:
        """Return the sizes needed to build this tower again without loading the original."""
        return {name: getattr(self.model.config, name) for name in _CLIP_FIELDS}


def build_encoder(config: VideoTokenizerConfig, clip: dict[str, Any] | None = None) -> PatchEncoder | ClipEncoder:
    """Build the encoder of a config. With `clip`, the shape of a saved tower, CLIP is initialised but not loaded."""
    if not config.encoder_weights:
        return PatchEncoder(config)
    from transformers import CLIPVisionConfig, CLIPVisionModel  # takes seconds: import only for CLIP

    if clip is not None:
        return ClipEncoder(CLIPVisionModel(CLIPVisionConfig(**clip)))
    try:
        model = CLIPVisionModel.from_pretrained(config.encoder_weights, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"encoder_weights = {config.encoder_weights!r} can't be loaded as a CLIP vision model ({reason}); use a "
            "transformers name or a local folder, or '' to train a ViT from scratch"
        ) from None
    assert isinstance(model, CLIPVisionModel)
    if model.config.patch_size != config.patch_px:
        raise ConfigError(
            f"patch_px = {config.patch_px}, but {config.encoder_weights!r} has patches of {model.config.patch_size} "
            f"pixels; set patch_px = {model.config.patch_size}, and input_px for the grid you want"
        )
    return ClipEncoder(model)
