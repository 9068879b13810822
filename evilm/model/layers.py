"""The transformer block and the pixel normalisation shared by the model and the tokenizer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with a padding mask.

    `explicit` computes the two products with separate operations: FLOP counters do not see the fused kernel on CPU.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout, self.explicit = heads, dropout, False
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch word dim"], padding: Bool[Tensor, "batch word"] | None = None
    ) -> Float[Tensor, "batch word dim"]:
        """Attend to all positions except those where `padding` is True."""
        batch, length, dim = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        visible = None if padding is None else ~padding[:, None, None, :]
        if self.explicit:
            scores = query @ key.transpose(-2, -1) * key.shape[-1] ** -0.5
            if visible is not None:
                scores = scores.masked_fill(~visible, float("-inf"))
            mixed = F.dropout(scores.softmax(-1), dropout) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP, each after a LayerNorm and with a residual connection."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        self.drop = nn.Dropout(dropout)
        self.apply(init_linear)

    def forward(
        self, x: Float[Tensor, "batch word dim"], padding: Bool[Tensor, "batch word"] | None = None
    ) -> Float[Tensor, "batch word dim"]:
        x = x + self.drop(self.attention(self.norm_attention(x), padding))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class Blocks(nn.Module):
    """A stack of blocks with a parameter-free LayerNorm at the end.

    Pre-norm blocks are easy to train from scratch but need a final norm. An affine one would add 2 x dim parameters,
    which Table 8 does not count; every head starts with a Linear layer, which can learn the same.
    """

    def __init__(self, layers: int, dim: int, heads: int, mlp_ratio: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio, dropout) for _ in range(layers)])

    def forward(
        self, x: Float[Tensor, "batch word dim"], padding: Bool[Tensor, "batch word"] | None = None
    ) -> Float[Tensor, "batch word dim"]:
        for block in self.blocks:
            x = block(x, padding)
        return F.layer_norm(x, (self.dim,))


def init_linear(module: nn.Module) -> None:
    """Initialise with Xavier weights, which suit narrow models better than a fixed deviation, and zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PixelNorm(nn.Module):
    """Convert raw frames to an image encoder's input: resized, masked, normalised, channels first.

    The model and the tokenizer each have one, since ImageNet and CLIP statistics differ. It has no saved state.
    """

    def __init__(self, input_px: int, grid: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.input_px, self.grid = input_px, grid
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(
        self,
        frames: UInt8[Tensor, "clip frame height width 3"],
        mask: Bool[Tensor, "clip frame grid grid"] | None = None,
    ) -> Float[Tensor, "images 3 input_px input_px"]:
        """Normalise decoded frames (uint8, 0-255); masked pixels become 0 (black) before normalisation.

        Frames of another size are resized with antialiasing. The mask is then applied before and after, so that no
        masked pixel bleeds into a visible region. Paper: Sec. 3.4; "zero-value pixels" read as in VIOLET.
        """
        pixels = frames.to(self.mean.device, non_blocking=True).flatten(0, 1).permute(0, 3, 1, 2).float()
        if mask is not None:
            mask = mask.to(pixels.device, non_blocking=True).flatten(0, 1)[:, None]
            pixels = hide(pixels, mask)
        if pixels.shape[-2:] != (self.input_px, self.input_px):
            size = (self.input_px, self.input_px)
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
            if mask is not None:
                pixels = hide(pixels, mask)
        return (pixels - self.mean) / self.std


def hide(
    pixels: Float[Tensor, "images 3 height width"], mask: Bool[Tensor, "images 1 grid grid"]
) -> Float[Tensor, "images 3 height width"]:
    """Set the pixels of masked cells to zero."""
    cells = F.interpolate(mask.to(torch.uint8), pixels.shape[-2:], mode="nearest")
    return pixels.masked_fill(cells.bool(), 0.0)


def use_explicit_attention(model: nn.Module, explicit: bool = True) -> None:
    """Switch every `Attention` in `model` between explicit matrix products and the fused kernel."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.explicit = explicit
