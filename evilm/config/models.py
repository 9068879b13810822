"""Settings of the model (E-ViLM) and of the semantic video tokenizer."""

from typing import Literal

from pydantic import Field, model_validator

from evilm.config.base import Common, Config, Incidental


class EViLMConfig(Config):
    """E-ViLM, Eq. 1-2. The defaults are the paper's (Sec. 4.1, Table 8)."""

    video_encoder: Common[str] = "edgenext_small"
    """Image model of timm whose last features, at stride 32 or averaged to it, give the regions; or module:builder."""
    video_weights: str = ""
    """Initial weights of the video encoder: '' random, 'timm' the pretrained ones of timm, else a safetensors file."""
    input_px: int = Field(default=256, ge=32, multiple_of=32)
    """Side of the frames that the model sees, in pixels; stored frames of another size are resized."""
    num_frames: int = Field(default=4, ge=1, le=64)
    """Frames per clip; must divide the number stored."""
    vocab_size: int = Field(default=9157, ge=8)
    """Entries of the vocabulary; pre-training takes the number from the vocabulary."""
    max_text_len: int = Field(default=40, ge=4)
    """Longest caption in word pieces, [CLS] and [SEP] included; longer ones are truncated and counted."""
    text_positions: int = Field(default=512, ge=4)
    """Positions in the text encoder's embedding table."""
    text_dim: int = Field(default=128, gt=0)
    """Width of the BERT text encoder."""
    text_layers: int = Field(default=12, ge=1)
    """Layers of the text encoder."""
    text_heads: int = Field(default=4, ge=1)
    """Attention heads of the text encoder."""
    dim: int = Field(default=384, gt=0)
    """Width of the multi-modal decoder."""
    decoder_layers: int = Field(default=4, ge=1)
    """Blocks of the multi-modal decoder."""
    decoder_heads: int = Field(default=6, ge=1)
    """Attention heads of the multi-modal decoder."""
    mlp_ratio: int = Field(default=4, ge=1)
    """Hidden width of a block's MLP, as a multiple of the block's width."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability in the text encoder and the decoder."""
    temporal_embedding: bool = True
    """Add a learned vector per frame; without it the model cannot see the order of frames."""
    temporal_std: float = Field(default=0.5, gt=0)
    """Standard deviation of the temporal embedding's initial values; at 0.02 it is hardly learned."""
    spatial_embedding: bool = False
    """Add a learned vector per grid cell. Table 8 has no row for it, as EdgeNeXt already encodes position."""
    num_codes: int = Field(default=9420, ge=2, le=65535)
    """Classes of the MVM head; pre-training takes the number from the tokenizer."""

    @property
    def grid(self) -> int:
        """Return the rows (and columns) of regions per frame: EdgeNeXt ends at stride 32."""
        return self.input_px // 32

    @property
    def num_regions(self) -> int:
        """Return the regions per clip, frames x rows x columns."""
        return self.num_frames * self.grid**2

    @model_validator(mode="after")
    def _heads_divide(self) -> "EViLMConfig":
        for width, heads, name in (
            (self.text_dim, self.text_heads, "text_heads"),
            (self.dim, self.decoder_heads, "decoder_heads"),
        ):
            if width % heads:
                raise ValueError(f"{name} = {heads} does not divide the width {width}; choose a divisor")
        if self.max_text_len > self.text_positions:
            raise ValueError(
                f"max_text_len = {self.max_text_len} is over text_positions = {self.text_positions}; lower it"
            )
        return self


class CodebookConfig(Config):
    """The vector quantizer, Eq. 4 and 7."""

    num_codes: Common[int] = Field(default=9420, ge=2, le=65535)
    """Prototypes in the codebook (Sec. 4.1: 9,420)."""
    code_dim: int = Field(default=32, ge=2)
    """Width of a prototype (Sec. 4.1: 32)."""
    init: Common[Literal["random", "kmeans"]] = "random"
    """Initial codebook: random (the paper), or k-means over the first batches. With an encoder trained from scratch, a
    random codebook collapses within an epoch unless unused codes are revived."""
    init_batches: int = Field(default=8, ge=1)
    """Steps whose regions, of all workers, k-means uses; at most 64 regions per code are drawn from them."""
    update: Literal["gradient", "ema"] = "gradient"
    """gradient: by the codebook term of Eq. 7; ema: to moving averages of the regions assigned to each code."""
    ema_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay of the moving averages per step, for update = ema."""
    revive_below: Common[float] = Field(default=0.0, ge=0)
    """A code used less often than this share of the mean usage is moved to a random region of the step, drawn from up
    to 4,096 regions of all workers; 0 turns it off."""
    revive_every: int = Field(default=50, ge=1)
    """Steps between two revivals."""
    codebook_weight: float = Field(default=1.0, ge=0)
    """Weight of the codebook term of Eq. 7."""
    commitment_weight: float = Field(default=1.0, ge=0)
    """Weight of the commitment term of Eq. 7."""
    min_usage: Incidental[float] = Field(default=0.01, ge=0, le=1)
    """Smallest accepted share of the codebook, 0 to 1, that is used on the val split at the end of training, and in the
    codes of the train split; with fewer regions than codes, the share of the regions. At least 8 distinct codes in any
    case (an eighth of a codebook below 64). Below it train_tokenizer, precompute_codes and pretrain end with exit code
    1; 0 accepts everything. The default only detects a collapse, which leaves a handful of codes, where a healthy
    codebook uses more than half; what lies between is for the model's scores to judge."""


class FocalConfig(Config):
    """The multi-label word loss, Eq. 6 with its sign fixed."""

    gamma_positive: float = Field(default=0.0, ge=0)
    """Exponent on (1 - p) of words in the caption; 0 in Eq. 6."""
    gamma_negative: float = Field(default=1.0, ge=0)
    """Exponent on p of words not in the caption; 1 in Eq. 6."""
    reduction: Literal["mean", "sum"] = "mean"
    """mean (Eq. 6) or sum over the K words."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the word loss relative to the squared terms of Eq. 7."""
    stop_weight_gradient: bool = False
    """Treat p in front of the logarithm as a constant."""


class VideoTokenizerConfig(Config):
    """The semantic vector-quantized video tokenizer, Sec. 3.3."""

    encoder_weights: Common[str] = ""
    """Vision model: '' trains a ViT from scratch; else the transformers name or local path of a CLIP model."""
    input_px: int = Field(default=256, ge=32, multiple_of=32)
    """Side of the frames that the tokenizer sees, in pixels."""
    patch_px: int = Field(default=32, ge=4)
    """Side of a patch in pixels; input_px / patch_px must be the grid of the model."""
    num_frames: int = Field(default=4, ge=1)
    """Frames per clip; must divide the number stored."""
    encoder_dim: int = Field(default=768, gt=0)
    """Width of the ViT; a CLIP model has its own."""
    encoder_layers: int = Field(default=12, ge=1)
    """Layers of the ViT."""
    encoder_heads: int = Field(default=12, ge=1)
    """Attention heads of the ViT."""
    decoder_dim: int = Field(default=768, gt=0)
    """Width of the decoder, which is dropped after training."""
    decoder_layers: int = Field(default=8, ge=1)
    """Layers of the decoder (Sec. 4.1: 8)."""
    decoder_heads: int = Field(default=12, ge=1)
    """Attention heads of the decoder."""
    vocab_size: int = Field(default=9157, ge=8)
    """Words K of the multi-label head; training takes the number from the vocabulary."""
    codebook: CodebookConfig = CodebookConfig()
    focal: FocalConfig = FocalConfig()

    @property
    def grid(self) -> int:
        """Return the rows (and columns) of codes per frame."""
        return self.input_px // self.patch_px

    @model_validator(mode="after")
    def _fits(self) -> "VideoTokenizerConfig":
        if self.input_px % self.patch_px:
            raise ValueError(f"patch_px = {self.patch_px} does not divide input_px = {self.input_px}; choose a divisor")
        for width, heads, name in (
            (self.encoder_dim, self.encoder_heads, "encoder_heads"),
            (self.decoder_dim, self.decoder_heads, "decoder_heads"),
        ):
            if width % heads:
                raise ValueError(f"{name} = {heads} does not divide the width {width}; choose a divisor")
        return self
