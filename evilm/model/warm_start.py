"""Initialise a model from a trained one of its kind, even with another vocabulary, grid or number of frames.

Weights of the same name and shape are copied. Word rows follow their word piece. Positions are interpolated over the
frame and over time, since both models see the same clip with more or fewer of them. Weights of another shape or
meaning keep their random values and are reported.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evilm.config.models import EViLMConfig, VideoTokenizerConfig
from evilm.errors import CheckpointError
from evilm.io import storage
from evilm.model.evilm_model import EViLMModel
from evilm.model.identity import read_objectives
from evilm.model.pretrained import VOCAB
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.text.vocab import Vocab

Change = Callable[[Tensor, Tensor], Tensor]
"""From the old and the new model's weight to the initial value; a shape other than the new one's means "unfit"."""

_STUDENT_NEEDS = {
    "video_encoder": ("video_encoder.", "video_projection."),
    "text_heads": ("text_encoder.bert.encoder.",),
    "decoder_heads": ("decoder.",),
}
_TOKENIZER_NEEDS = {"encoder_heads": ("encoder.blocks.",), "decoder_heads": ("decoder.blocks.",)}
"""Settings that must agree for weights to have the same meaning, and the weights they concern."""


@dataclass(frozen=True)
class WarmStart:
    """Names of the weights that a model took from another one; `decoder.*` means all with this prefix."""

    model: str
    """Folder of the other model."""
    taken: int
    """Number of weights taken from it."""
    resized: list[str]
    """Weights that were interpolated or taken in part."""
    unused: list[str]
    """Weights of the other model that do not fit."""
    fresh: list[str]
    """Weights that start from random values."""

    def __str__(self) -> str:
        parts = {"resized": self.resized, "not used": self.unused, "started fresh": self.fresh}
        return f"{self.taken} weights start from {self.model}; " + "; ".join(
            f"{name}: {', '.join(found) or 'none'}" for name, found in parts.items()
        )


def start_model(config: EViLMConfig, uri: str, vocab: Vocab, tokenizer: str) -> tuple[EViLMModel, WarmStart]:
    """Build a model whose weights start from those of another one.

    Args:
        config: the new architecture; its `vocab_size` is that of `vocab`.
        uri: the other model's folder, published or a checkpoint; a local path or s3://bucket/key.
        tokenizer: fingerprint of the video tokenizer whose codes the model will learn; the MVM head is taken only if
            the other model learned the codes of the same one.

    Raises:
        CheckpointError: there is no model, it is damaged, or none of its weight matrices fits.
        VocabError: its vocabulary is missing.
    """
    old = EViLMModel.from_pretrained(uri, dtype=torch.float32)
    student = EViLMModel(config, pretrained_video=old.config.video_encoder != config.video_encoder)
    words, codes = _by_piece(_vocab_of(uri, old.config.vocab_size), vocab), read_objectives(uri)[1]
    changes: dict[str, Change] = {
        "text_encoder.bert.embeddings.word_embeddings.weight": words,
        "text_encoder.bert.embeddings.position_embeddings.weight": _first_rows,
        "mlm_head.bias": words,
        "temporal_embedding": _over_time,
        "spatial_embedding": partial(_over_frame, old_grid=old.config.grid, grid=config.grid),
    }
    other = _differing(old.config, config, _STUDENT_NEEDS) + (() if codes == tokenizer else ("mvm_head.codes.",))
    return student, _take(student, old.state_dict(), changes, other, uri)


def refit(student: EViLMModel, arch: EViLMConfig) -> EViLMModel:
    """Change a model for texts and clips of other lengths, as `start_model` would: without new weights of words."""
    if student.temporal_embedding is not None:
        rows = _over_time(student.temporal_embedding.detach(), torch.empty(arch.num_frames, 0))
        student.temporal_embedding = nn.Parameter(rows)
    student.config = arch
    return student


def start_tokenizer(config: VideoTokenizerConfig, uri: str, vocab: Vocab) -> tuple[VideoTokenizer, WarmStart]:
    """Build a tokenizer whose weights start from those of another one, with its codebook if the sizes agree.

    Args:
        config: the new architecture; its `vocab_size` is that of `vocab`.
        uri: the other tokenizer's folder, published or a checkpoint; a local path or s3://bucket/key.

    Raises:
        CheckpointError: there is no tokenizer, it is damaged, or none of its weight matrices fits.
        VocabError: its vocabulary is missing.
    """
    old = VideoTokenizer.from_pretrained(uri)
    clip = old.clip_shape() or {}
    tokenizer = VideoTokenizer(config, clip if clip.get("patch_size") == config.patch_px else None)
    # A published model has no counts and moving averages, and its checkpoint must start the same training.
    state = {name: value for name, value in old.state_dict().items() if name not in _COUNTS}
    words = _by_piece(_vocab_of(uri, old.config.vocab_size), vocab)
    grids = {"old_grid": old.config.grid, "grid": config.grid}
    changes: dict[str, Change] = {
        "encoder.positions": partial(_over_frame, **grids),
        "decoder.positions": partial(_over_clip, **grids),
        "decoder.head.weight": words,
        "decoder.head.bias": words,
    }
    report = _take(tokenizer, state, changes, _differing(old.config, config, _TOKENIZER_NEEDS), uri)
    if has_codebook(report) and config.codebook.update == "ema":
        tokenizer.quantizer.mean_sum.copy_(F.normalize(tokenizer.quantizer.codebook.detach(), dim=-1))
    return tokenizer, report


_CODEBOOK, _COUNTS = "quantizer.codebook", ("quantizer.usage", "quantizer.mean_sum")


def has_codebook(report: WarmStart) -> bool:
    """Check if a tokenizer took the other one's codebook, which must then be kept."""
    return _CODEBOOK not in report.fresh


def _take(
    module: nn.Module, state: Mapping[str, Tensor], changes: Mapping[str, Change], other: tuple[str, ...], uri: str
) -> WarmStart:
    """Copy the weights of `state` that fit into `module`, except names with a prefix in `other`."""
    own = {name: tensor for name, tensor in module.state_dict().items() if name not in _COUNTS}
    taken, resized = set[str](), list[str]()
    for name, value in state.items():
        if name not in own or name.startswith(other):
            continue
        start = changes[name](value, own[name]) if name in changes else value
        if start.shape != own[name].shape:
            continue
        if value.shape != start.shape or (name in changes and not torch.equal(start, value)):
            resized.append(f"{name} {tuple(value.shape)} to {tuple(start.shape)}")
        with torch.no_grad():
            own[name].copy_(start)
        taken.add(name)
    if not any(state[name].ndim > 1 for name in taken):  # some bias always fits
        raise CheckpointError(f"no weight matrix of {uri} fits this model; start from a model of the same widths")
    unused, fresh = _brief(state.keys() - taken, state), _brief(own.keys() - taken, own)
    return WarmStart(uri, len(taken), resized, unused, fresh)


def _differing(old: object, new: object, needs: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """List the prefixes of weights whose settings differ."""
    return tuple(p for name, parts in needs.items() if getattr(old, name) != getattr(new, name) for p in parts)


def _vocab_of(uri: str, size: int) -> Vocab:
    vocab = Vocab.load(storage.join(uri, VOCAB))
    if vocab.size != size:
        raise CheckpointError(
            f"the vocabulary of {uri} has {vocab.size} pieces, the model {size}; name the folder it was saved to"
        )
    return vocab


def _by_piece(old: Vocab, new: Vocab) -> Change:
    """Copy the old table's row of each word piece; new pieces keep their random rows."""
    at = {piece: row for row, piece in enumerate(old.pieces)}
    pairs = [(row, at[piece]) for row, piece in enumerate(new.pieces) if piece in at]
    rows, old_rows = torch.tensor(pairs).unbind(1)  # never empty: both have the special pieces

    def change(value: Tensor, fresh: Tensor) -> Tensor:
        return fresh.index_copy(0, rows, value[old_rows]) if value.shape[1:] == fresh.shape[1:] else value

    return change


def _first_rows(value: Tensor, fresh: Tensor) -> Tensor:
    """Copy the first rows of a position table, as many as both have."""
    if value.shape[1:] != fresh.shape[1:]:
        return value
    return torch.cat([value[: len(fresh)], fresh[len(value) :]])


def _over_time(value: Tensor, fresh: Tensor) -> Tensor:
    """Interpolate a vector per frame (frame, dim); frames are the middles of equal spans of a clip."""
    if len(value) == len(fresh):
        return value
    return F.interpolate(value.T[None], len(fresh), mode="linear", align_corners=False)[0].T


def _over_frame(value: Tensor, fresh: Tensor, old_grid: int, grid: int) -> Tensor:
    """Interpolate a vector per region of a frame (row x col, dim)."""
    from timm.layers import resample_abs_pos_embed  # type: ignore[attr-defined]  # seconds to import

    return resample_abs_pos_embed(value[None], [grid, grid], [old_grid, old_grid], num_prefix_tokens=0)[0]


def _over_clip(value: Tensor, fresh: Tensor, old_grid: int, grid: int) -> Tensor:
    """Interpolate a vector per region of a clip (frame x row x col, dim)."""
    dim = value.shape[1]
    by_region = value.view(-1, old_grid**2, dim).transpose(0, 1).flatten(1)
    by_region = _over_frame(by_region, fresh, old_grid, grid)
    by_frame = by_region.view(grid**2, -1, dim).transpose(0, 1).flatten(1)
    frames = max(1, len(fresh) // grid**2)
    return _over_time(by_frame, by_frame.new_empty(frames, 0)).reshape(-1, dim)


def _brief(names: Collection[str], every: Collection[str]) -> list[str]:
    """Sort weight names; `part.*` replaces the names of a part if all of them are listed."""
    found: dict[str, None] = {}
    for name in sorted(names):
        parts = name.split(".")
        for count in range(1, len(parts)):
            part = ".".join(parts[:count]) + "."
            under = [other for other in every if other.startswith(part)]
            if len(under) > 1 and all(other in names for other in under):
                found[f"{part}*"] = None
                break
        else:
            found[name] = None
    return list(found)
