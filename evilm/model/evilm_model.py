"""E-ViLM: a video and a text encoder, a multi-modal decoder over both, and the heads of pre-training. Eq. 1-2."""

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
PREFIX = "student."
"""In front of the names of the weights in a checkpoint of pre-training."""


class DecoderOutput(NamedTuple):
    """Decoder states of [CLS], the words and the regions; an absent modality has length 0."""

    cls: Float[Tensor, "clip dim"]
    words: Float[Tensor, "clip word dim"]
    regions: Float[Tensor, "clip region dim"]


class EViLMModel(nn.Module):
    """E-ViLM. The defaults of its config give Table 8 to the digit: 16,313,514 parameters.

    `tokens` holds three rows, the [CLS] vector, t_L and t_V: just the 3 x 384 = 1,152 that Table 8 calls token types.
    Regions run frame by frame, row by row. A clip's regions and a caption's words may be encoded once and decoded in
    any pairing.
    """

    def __init__(self, config: EViLMConfig, pretrained_video: bool = True) -> None:
        """Build with fresh weights, but for the video encoder's where the config names them and they are wanted."""
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
        """Return where the weights are."""
        return self.tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return what the weights are stored in, and what comes out of the encoders without autocast."""
        return self.tokens.weight.dtype

    def encode_video(
        self,
        frames: UInt8[Tensor, "clip frame height width 3"],
        mask: Bool[Tensor, "clip frame grid grid"] | None = None,
    ) -> Float[Tensor, "clip region dim"]:
        """Regions of raw frames (0-255), ready for the decoder: t_V, time and place are added.

        Pixels under `mask` (True = masked) are black. Paper: Eq. 1 and e_V + t_V of Eq. 2.

        Raises:
            ConfigError: another number of frames than the temporal embedding has.
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
        """Words ready for the decoder; `padding_mask` True marks fill. Paper: e_L + t_L of Eq. 2."""
        return self.text_projection(self.text_encoder(input_ids, padding_mask)) + self.tokens.weight[1]

    def decode(
        self,
        video: Float[Tensor, "clip region dim"] | None,
        text: Float[Tensor, "clip word dim"] | None,
        padding_mask: Bool[Tensor, "clip word"] | None = None,
    ) -> DecoderOutput:
        """Both modalities, or one alone, seen together behind [CLS]. Paper: Eq. 2."""
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
        """Scores of mismatch (0) and match (1)."""
        return self.match_head(cls)

    def mlm_logits(self, words: Float[Tensor, "*words dim"]) -> Float[Tensor, "*words vocab"]:
        """Scores over the vocabulary; pass the masked words' states only, it is a big product."""
        return self.mlm_head(words, self.text_encoder.word_table)

    def mvm_logits(self, regions: Float[Tensor, "*regions dim"]) -> Float[Tensor, "*regions num_codes"]:
        """Scores over the codes; pass the masked regions' states only, it is a big product."""
        return self.mvm_head(regions)

    def use_explicit_attention(self, explicit: bool = True) -> None:
        """Spell attention out, for FLOP counters that do not see the fused kernel."""
        use_explicit_attention(self, explicit)
        self.text_encoder.bert.set_attn_implementation("eager" if explicit else "sdpa")

    def save_pretrained(self, uri: str) -> None:
        """Write `model.safetensors` and `config.json`; the vocabulary is put beside them by the caller."""
        pretrained.save(uri, KIND, self.config, {WEIGHTS: self.state_dict()})

    @classmethod
    def from_pretrained(
        cls, uri: str, dtype: str | torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> "EViLMModel":
        """The model saved at `uri`, in eval mode.

        Args:
            uri: folder of a saved model or of a training checkpoint, a local path or s3://bucket/key.
            dtype: float32, bfloat16 or float16; None as it was saved.
            device: where to put it.

        Raises:
            CheckpointError: nothing is there, it is damaged, or it does not fit.
            ConfigError: a dtype that is none, or a device that is not there.
        """
        place = pretrained.as_device(device)
        kept = checkpoint_folder.read_model(uri, PREFIX)
        content = pretrained.read_config(uri, KIND)
        config = validate(EViLMConfig, content["config"], where=uri)
        wanted = pretrained.as_dtype(dtype or content.get("dtype", "float32"))
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten; leave the caller's seed alone
            student = cls(config, pretrained_video=False)
        pretrained.load_into(student, pretrained.read_weights(uri, WEIGHTS) if kept is None else kept, uri)
        return student.cast(wanted).to(place).eval()

    def cast(self, dtype: torch.dtype) -> "EViLMModel":
        """Store the weights in another dtype; pixels are normalised in float32 all the same."""
        if dtype != self.dtype:
            self.to(dtype)
            self.pixels = PixelNorm(self.config.input_px, self.config.grid, IMAGENET_MEAN, IMAGENET_STD).to(self.device)
        return self


def _table(rows: int, dim: int, std: float, wanted: bool) -> nn.Parameter | None:
    """A table of learned vectors, or None; its random numbers are drawn last, after all that Table 8 counts."""
    return nn.Parameter(torch.randn(rows, dim) * std) if wanted else None
