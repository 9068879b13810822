"""Small students and tokenizers, and noise for them."""

import json
from pathlib import Path

import torch

from evilm.config.models import CodebookConfig, EViLMConfig, VideoTokenizerConfig
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.semantic_vq import VideoTokenizer


def student_config(**changes) -> EViLMConfig:
    """A student of 2 x 2 regions a frame."""
    settings = {
        "video_encoder": "edgenext_xx_small",
        "input_px": 64,
        "num_frames": 3,
        "vocab_size": 50,
        "text_dim": 32,
        "text_layers": 2,
        "text_heads": 2,
        "text_positions": 40,
        "dim": 48,
        "decoder_layers": 2,
        "decoder_heads": 3,
        "num_codes": 20,
    }
    return EViLMConfig(**(settings | changes))


def tokenizer_config(codebook: dict | None = None, **changes) -> VideoTokenizerConfig:
    """A tokenizer of 2 x 2 codes a frame."""
    settings = {
        "input_px": 64,
        "num_frames": 3,
        "encoder_dim": 24,
        "encoder_layers": 1,
        "encoder_heads": 2,
        "decoder_dim": 24,
        "decoder_layers": 1,
        "decoder_heads": 2,
        "vocab_size": 11,
        "codebook": CodebookConfig(**({"num_codes": 16, "code_dim": 8} | (codebook or {}))),
    }
    return VideoTokenizerConfig(**(settings | changes))


def build_student(seed: int = 0, **changes) -> EViLMModel:
    """A student of `student_config` in eval mode, with weights of this seed."""
    torch.manual_seed(seed)
    return EViLMModel(student_config(**changes)).eval()


def build_tokenizer(seed: int = 0, **changes) -> VideoTokenizer:
    """A tokenizer of `tokenizer_config`, with weights of this seed."""
    torch.manual_seed(seed)
    return VideoTokenizer(tokenizer_config(**changes))


def frames(clips: int = 2, num_frames: int = 3, px: int = 64, seed: int = 0) -> torch.Tensor:
    """Noise as raw frames."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (clips, num_frames, px, px, 3), dtype=torch.uint8, generator=generator)


def words(clips: int = 2, length: int = 6, vocab: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Word ids without padding."""
    ids = torch.randint(5, vocab, (clips, length), generator=torch.Generator().manual_seed(seed))
    return ids, torch.zeros(clips, length, dtype=torch.bool)


def drop_digests(config: Path) -> None:
    """Remove the digests of a saved model, as of one of an earlier version or one that was changed on purpose."""
    content = json.loads(config.read_text())
    del content["sha256"]
    config.write_text(json.dumps(content))
