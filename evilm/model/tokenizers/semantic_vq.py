"""The semantic vector-quantized video tokenizer: codes from which the words of a caption can be predicted. Sec. 3.3."""

import hashlib
import json
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from evilm.config.base import validate
from evilm.config.models import CodebookConfig, VideoTokenizerConfig
from evilm.errors import CheckpointError
from evilm.io import storage
from evilm.model import checkpoint_folder, pretrained
from evilm.model.layers import Blocks, PixelNorm, init_linear
from evilm.model.tokenizers.patch_encoder import CLIP_MEAN, CLIP_STD, ClipEncoder, build_encoder
from evilm.model.tokenizers.quantizer import Quantizer

KIND = "tokenizer"
WEIGHTS = "tokenizer.safetensors"
DECODER_WEIGHTS = "decoder.safetensors"
PREFIX = "tokenizer."
"""Prefix of the tokenizer's weight names in a checkpoint of its training."""
RESIZE = "bilinear, antialiased, float32"
_FIRST_PROBABILITY = 0.1
_TOGETHER = 16  # frames encoded at a time in any batch: matrix products of other shapes round differently


class TokenizerOutput(NamedTuple):
    """Word scores of clips, the codes behind them, and the terms of Eq. 7 (unweighted)."""

    word_logits: Float[Tensor, "clip vocab"]
    code_ids: Int64[Tensor, "clip region"]
    codebook_loss: Float[Tensor, ""]
    commitment_loss: Float[Tensor, ""]
    vectors: Float[Tensor, "clip region code_dim"]


class WordDecoder(nn.Module):
    """Predict word scores from codes: blocks over all regions of a clip, their mean, a multi-label head. Paper: Eq. 5.

    Initial word probabilities are 0.1, not 0.5: nearly all words are absent from a caption, and their loss would
    outweigh that of the few present ones.
    """

    def __init__(self, config: VideoTokenizerConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.codebook.code_dim, config.decoder_dim)
        self.positions = nn.Parameter(torch.randn(config.num_frames * config.grid**2, config.decoder_dim) * 0.02)
        self.blocks = Blocks(config.decoder_layers, config.decoder_dim, config.decoder_heads)
        self.head = nn.Linear(config.decoder_dim, config.vocab_size)
        init_linear(self.input)
        init_linear(self.head)
        first = torch.tensor(_FIRST_PROBABILITY)
        nn.init.constant_(self.head.bias, float(first.logit()))

    def forward(self, codes: Float[Tensor, "clip region code_dim"]) -> Float[Tensor, "clip vocab"]:
        states = self.blocks(self.input(codes) + self.positions[: codes.shape[1]])
        return self.head(states.mean(1))


class VideoTokenizer(nn.Module):
    """Encoder, projection and codebook; only training and word scores need the decoder.

    Frames are encoded one by one, so a region's code depends only on its own frame. Regions are ordered by frame, row
    and column, as in the model.
    """

    def __init__(self, config: VideoTokenizerConfig, clip: dict[str, Any] | None = None) -> None:
        """Initialise randomly, except for CLIP weights named in the config. For `clip` see `build_encoder`."""
        super().__init__()
        self.config = config
        self.pixels = PixelNorm(config.input_px, config.grid, CLIP_MEAN, CLIP_STD)
        self.encoder = build_encoder(config, clip)
        self.projection = nn.Linear(self.encoder.width, config.codebook.code_dim)
        init_linear(self.projection)
        self.quantizer = Quantizer(config.codebook)
        self.decoder: WordDecoder | None = WordDecoder(config)

    @property
    def codebook(self) -> CodebookConfig:
        """Return the settings of the codebook."""
        return self.config.codebook

    @property
    def grid(self) -> int:
        """Return the number of regions per side of a frame."""
        return self.config.grid

    @property
    def num_frames(self) -> int:
        """Return the number of frames per clip."""
        return self.config.num_frames

    @property
    def independent_frames(self) -> bool:
        """Return True: frames are encoded one by one."""
        return True

    @property
    def has_words(self) -> bool:
        """Return False if the tokenizer was saved without its decoder."""
        return self.decoder is not None

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.projection.weight.device

    def vectors(self, frames: UInt8[Tensor, "clip frame height width 3"]) -> Float[Tensor, "clip region code_dim"]:
        """Encode raw frames (0-255) to one unit vector per region. Paper: E(X) of Sec. 3.3."""
        regions = self.projection(self.encoder(self.pixels(frames)))
        vectors = F.normalize(regions.float(), dim=-1)
        return vectors.view(frames.shape[0], -1, vectors.shape[-1])

    def forward(self, frames: UInt8[Tensor, "clip frame height width 3"]) -> TokenizerOutput:
        """Predict word scores of clips from their codes. Paper: Eq. 4-5.

        Raises:
            CheckpointError: the tokenizer was loaded without its decoder.
        """
        vectors = self.vectors(frames)
        quantized = self.quantizer(vectors)
        return TokenizerOutput(
            word_logits=self._decoder()(quantized.codes),
            code_ids=quantized.code_ids,
            codebook_loss=quantized.codebook_loss,
            commitment_loss=quantized.commitment_loss,
            vectors=vectors,
        )

    @torch.no_grad()
    def encode(self, frames: UInt8[Tensor, "clip frame height width 3"]) -> Int64[Tensor, "clip region"]:
        """Return the code of every region, computed in float32 and eval mode in any context.

        Frames are encoded in groups of a fixed size, the last one padded. So a frame's codes do not depend on its
        batch, its position there, or the other frames picked from its clip. Other kinds of processors round
        differently, which changes codes at near ties.
        """
        was_training = self.training
        self.eval()
        try:
            exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
            with torch.autocast(self.device.type, enabled=False), exact:
                codes = [self._encode_lot(lot) for lot in frames.flatten(0, 1).split(_TOGETHER) if len(lot)]
        finally:
            self.train(was_training)
        every = torch.cat([torch.empty(0, dtype=torch.int64, device=self.device), *codes])
        return every.view(len(frames), frames.shape[1] * self.config.grid**2)

    def _encode_lot(self, images: UInt8[Tensor, "image height width 3"]) -> Int64[Tensor, " region"]:
        """Encode up to `_TOGETHER` frames, padded to that number."""
        missing = _TOGETHER - len(images)
        filled = torch.cat([images, images[:1].expand(missing, -1, -1, -1)]) if missing else images
        vectors = self.vectors(filled[:, None])
        return self.quantizer.nearest(vectors.flatten(0, 1)).view(vectors.shape[:2])[: len(images)].flatten()

    @torch.no_grad()
    def word_logits(self, code_ids: Int64[Tensor, "clip region"]) -> Float[Tensor, "clip vocab"]:
        """Predict word scores of clips given as codes; the same code in all regions shows the words of that code."""
        return self._decoder()(self.quantizer.lookup(code_ids))

    def fingerprint(self) -> str:
        """Return a digest of everything that determines the codes, the same on every machine and after reloading.

        It covers encoder, projection, codebook, input and patch size, normalisation and resize rule.
        """
        rules = {
            "input_px": self.config.input_px,
            "patch_px": self.config.patch_px,
            "mean": CLIP_MEAN,
            "std": CLIP_STD,
            "resize": RESIZE,
            "encoder": "clip" if isinstance(self.encoder, ClipEncoder) else f"vit/{self.config.encoder_heads}",
        }
        if isinstance(self.encoder, ClipEncoder):
            rules["clip"] = self.encoder.shape()
        digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
        for name, tensor in sorted(self._label_state().items()):
            values = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{name} {values.shape}".encode())
            digest.update(values.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, uri: str) -> None:
        """Write `tokenizer.safetensors` (everything that codes need), `decoder.safetensors` and `config.json`."""
        files = {WEIGHTS: self._label_state()}
        if self.decoder is not None:
            files[DECODER_WEIGHTS] = self.decoder.state_dict()
        pretrained.save(uri, KIND, self.config, files, clip=self.clip_shape(), fingerprint=self.fingerprint())

    def save_config(self, uri: str) -> None:
        """Write the `config.json` of a checkpoint; without a fingerprint, since its weights still change."""
        pretrained.save_config(uri, KIND, self.config, clip=self.clip_shape())

    @classmethod
    def from_pretrained(cls, uri: str) -> "VideoTokenizer":
        """Load the tokenizer saved at `uri`, on CPU and in eval mode; without decoder if its file was removed.

        `uri` may also be a checkpoint of the tokenizer's training.

        Raises:
            CheckpointError: there is no tokenizer, it does not fit its config, or its weights were changed.
        """
        kept = checkpoint_folder.read_model(uri, PREFIX)
        content = pretrained.read_config(uri, KIND)
        config = validate(VideoTokenizerConfig, content["config"], where=uri)
        with torch.random.fork_rng(devices=[]):  # weights drawn here are overwritten; keep the caller's RNG unchanged
            tokenizer = cls(config, clip=content.get("clip"))
        if kept is not None:
            pretrained.load_into(tokenizer, kept, uri)
            return tokenizer.eval()
        usage = {name: tensor for name, tensor in tokenizer.quantizer.state_dict().items() if name != "codebook"}
        labels = nn.ModuleDict({name: getattr(tokenizer, name) for name in ("encoder", "projection", "quantizer")})
        state = pretrained.read_weights(uri, WEIGHTS, content)
        pretrained.load_into(labels, state | {f"quantizer.{name}": value for name, value in usage.items()}, uri)
        if storage.exists(storage.join(uri, DECODER_WEIGHTS)):
            assert tokenizer.decoder is not None
            state = pretrained.read_weights(uri, DECODER_WEIGHTS, content)
            pretrained.load_into(tokenizer.decoder, state, uri)
        else:
            tokenizer.decoder = None
        found, saved = tokenizer.fingerprint(), content.get("fingerprint")
        if found != saved:
            raise CheckpointError(
                f"{uri} has fingerprint {found}, its config says {saved}; the files are mixed up, save again"
            )
        return tokenizer.eval()

    def clip_shape(self) -> dict[str, Any] | None:
        """Return the shape of the CLIP tower, or None if the encoder is not one."""
        return self.encoder.shape() if isinstance(self.encoder, ClipEncoder) else None

    def _decoder(self) -> WordDecoder:
        if self.decoder is None:
            raise CheckpointError(
                f"this tokenizer was loaded without {DECODER_WEIGHTS}; restore that file to get word scores"
            )
        return self.decoder

    def _label_state(self) -> dict[str, Tensor]:
        """Return the weights that determine the codes, without counts and moving averages."""
        parts = ("encoder.", "projection.", "quantizer.codebook")
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(parts)}
