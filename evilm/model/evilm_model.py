"""E-ViLM: a video encoder, a text encoder, a multi-modal decoder over both, and the pre-training heads. Eq. 1-2."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from evilm.config.base import validate
from evilm.config.models import EViLMConfig
from evilm.errors import ConfigError
from evilm.model import checkpoint_folder, pretrained
from evilm.model.heads import MatchHead, MlmHead, MvmHead
from evilm.model.layers import Blocks, PixelNorm, init_linear, use_explicit_attention
from evilm.model.text_encoder import TextEncoder
from evilm.model.video_encoder import build_video_encoder

KIND = "student"
WEIGHTS = "model.safetensors"
VOCAB_FILE = f"{pretrained.VOCAB}/vocab.txt"
PREFIX = "student."
"""Prefix of the model's weight names in a pre-training checkpoint."""


class DecoderOutput(NamedTuple):
    """Decoder states of [CLS], the words and the regions; an absent modality has length 0."""

    cls: Float[Tensor, "clip dim"]
    words: Float[Tensor, "clip word dim"]
    regions: Float[Tensor, "clip region dim"]


class EViLMModel(nn.Module):
    """E-ViLM. With the default config, its 16,313,514 parameters agree with Table 8.

    `tokens` has three rows, the [CLS] vector, t_L and t_V: the 3 x 384 = 1,152 that Table 8 calls token types.
    Regions are ordered by frame, row and column. Clips and captions can be encoded once and decoded in any pairing.
    """

    def __init__(self, config: EViLMConfig, pretrained_video: bool = True) -> None:
        """Initialise randomly; the video encoder starts from pretrained weights if the config names them.

        Without `pretrained_video` it is initialised randomly too, e.g. before loading saved weights.
        """
        super().__init__()
        self.config = config
        weights = config.video_weights if pretrained_video else ""
        encoder = build_video_encoder(config.video_encoder, weights, config.input_px)
        self.pixels = PixelNorm(config.input_px, config.grid, encoder.mean, encoder.std)
        self.video_encoder = encoder
        self.video_projection = nn.Linear(self.video_encoder.channels, config.dim)
        self.text_encoder = TextEncoder(config)
        self.text_projection = nn.Linear(config.text_dim, config.dim)
        self.tokens = nn.Embedding(3, config.dim)
        self.decoder = Blocks(config.decoder_layers, config.dim, config.decoder_heads, config.mlp_ratio, config.dropout)
        self.match_head = MatchHead(config.dim)
        self.mlm_head = MlmHead(config.dim, config.text_dim, config.vocab_size)
        self.mvm_head = MvmHead(config.dim, config.num_codes)
        nn.init.normal_(self.tokens.weight, std=0.02)
        for projection in (self.video_projection, self.text_projection):
            init_linear(projection)
        self.temporal_embedding = _table(config.num_frames, config.dim, config.temporal_std, config.temporal_embedding)
        self.spatial_embedding = _table(config.grid**2, config.dim, 0.02, config.spatial_embedding)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights, which is also that of the encoders' outputs without autocast."""
        return self.tokens.weight.dtype

    def encode_video(
        self,
        frames: UInt8[Tensor, "clip frame height width 3"],
        mask: Bool[Tensor, "clip frame grid grid"] | None = None,
    ) -> Float[Tensor, "clip region dim"]:
        """Encode raw frames (0-255) to regions for the decoder; t_V and the position embeddings are added.

        Pixels under `mask` (True = masked) are black. Paper: Eq. 1 and e_V + t_V of Eq. 2.

        Raises:
            ConfigError: the number of frames differs from that of the temporal embedding.
        """
        clips, num_frames = frames.shape[:2]
        if self.temporal_embedding is not None and num_frames != self.config.num_frames:
            raise ConfigError(f"clips have {num_frames} frames, the model takes num_frames = {self.config.num_frames}")
        features = self.video_encoder(self.pixels(frames, mask).to(self.dtype))
        regions = self.video_projection(features).view(clips, num_frames, -1, self.config.dim)
        if self.temporal_embedding is not None:
            regions = regions + self.temporal_embedding[:, None]
        if self.spatial_embedding is not None:
            regions = regions + self.spatial_embedding
        return regions.flatten(1, 2) + self.tokens.weight[2]

    def encode_text(
        self, input_ids: Int64[Tensor, "clip word"], padding_mask: Bool[Tensor, "clip word"]
    ) -> Float[Tensor, "clip word dim"]:
        """Encode word pieces for the decoder; `padding_mask` is True at padding. Paper: e_L + t_L of Eq. 2."""
        return self.text_projection(self.text_encoder(input_ids, padding_mask)) + self.tokens.weight[1]

    def decode(
        self,
        video: Float[Tensor, "clip region dim"] | None,
        text: Float[Tensor, "clip word dim"] | None,
        padding_mask: Bool[Tensor, "clip word"] | None = None,
    ) -> DecoderOutput:
        """Decode [CLS] together with one or both modalities. Paper: Eq. 2."""
        given = [part for part in (text, video) if part is not None]
        assert len(given) > 0, "decode needs a video, a text or both"
        clips = given[0].shape[0]
        cls = self.tokens.weight[0].expand(clips, 1, -1)
        num_words = 0 if text is None else text.shape[1]
        states = torch.cat([cls, *(part.to(cls.dtype) for part in given)], dim=1)
        padding = None
        if text is not None and padding_mask is not None:
            padding = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
            padding[:, 1 : 1 + num_words] = padding_mask
        states = self.decoder(states, padding)
        return DecoderOutput(states[:, 0], states[:, 1 : 1 + num_words], states[:, 1 + num_words :])

    def match_logits(self, cls: Float[Tensor, "clip dim"]) -> Float[Tensor, "clip 2"]:
        """Compute the scores of mismatch (0) and match (1)."""
        return self.match_head(cls)

    def mlm_logits(self, words: Float[Tensor, "*words dim"]) -> Float[Tensor, "*words vocab"]:
        """Compute scores over the vocabulary. The product is large: pass the states of masked words only."""
        return self.mlm_head(words, self.text_encoder.word_table)

    def mvm_logits(self, regions: Float[Tensor, "*regions dim"]) -> Float[Tensor, "*regions num_codes"]:
        """Compute scores over the codes. The product is large: pass the states of masked regions only."""
        return self.mvm_head(regions)

    def use_explicit_attention(self, explicit: bool = True) -> None:
        """Compute attention with explicit matrix products, which FLOP counters see, unlike the fused kernel."""
        use_explicit_attention(self, explicit)
        self.text_encoder.bert.set_attn_implementation("eager" if explicit else "sdpa")

    def save_pretrained(self, uri: str) -> None:
        """Write `model.safetensors` and `config.json`; the caller adds the vocabulary, before it for a digest of it."""
        pretrained.save(uri, KIND, self.config, {WEIGHTS: self.state_dict()}, beside=[VOCAB_FILE])

    @classmethod
    def from_pretrained(
        cls, uri: str, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> "EViLMModel":
        """Load the model saved at `uri`, in eval mode.

        Args:
            uri: folder of a saved model or of a training checkpoint, a local path or s3://bucket/key.
            dtype: float32, bfloat16 or float16; None keeps the saved one.

        Raises:
            CheckpointError: there is no model, it is damaged, or its weights do not fit its config.
            ConfigError: the dtype is not one of these, or the device is not available.
        """
        place = pretrained.as_device(device)
        kept = checkpoint_folder.read_model(uri, PREFIX)
        content = pretrained.read_config(uri, KIND)
        config = validate(EViLMConfig, content["config"], where=uri)
        wanted = pretrained.as_dtype(dtype or content.get("dtype", "float32"))
        with torch.random.fork_rng(devices=[]):  # weights drawn here are overwritten; keep the caller's RNG unchanged
            student = cls(config, pretrained_video=False)
        state = pretrained.read_weights(uri, WEIGHTS, content) if kept is None else kept
        pretrained.load_into(student, state, uri)
        return student.cast(wanted).to(place).eval()

    def cast(self, dtype: torch.dtype) -> "EViLMModel":
        """Convert the weights to another dtype; pixels are still normalised in float32."""
        if dtype != self.dtype:
            self.to(dtype)
            mean, std = self.video_encoder.mean, self.video_encoder.std
            self.pixels = PixelNorm(self.config.input_px, self.config.grid, mean, std).to(self.device)
        return self


def _table(rows: int, dim: int, std: float, wanted: bool) -> nn.Parameter | None:
    """Build a table of learned vectors, or None; it draws its random numbers after all that Table 8 counts."""
    return nn.Parameter(torch.randn(rows, dim) * std) if wanted else None
