"""The interface of a video tokenizer and the registry of its kinds."""

from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from evilm.config.models import CodebookConfig
from evilm.errors import CheckpointError, ConfigError
from evilm.model import pretrained
from evilm.plugins import Registry


class BaseVideoTokenizer(Protocol):
    """A saved model that assigns one of a fixed number of codes to each region of a clip."""

    @property
    def codebook(self) -> CodebookConfig:
        """Return the settings of the codebook; callers read `num_codes` and `min_usage` (0 accepts any usage)."""
        ...

    @property
    def grid(self) -> int:
        """Return the number of regions per side of a frame."""
        ...

    @property
    def num_frames(self) -> int:
        """Return the number of frames per clip in its training."""
        ...

    @property
    def independent_frames(self) -> bool:
        """Return True if a frame's codes do not depend on the other frames of the clip.

        If False, models must use all stored frames of a clip, since a subset would have other codes.
        """
        ...

    @property
    def has_words(self) -> bool:
        """Return True if `word_logits` is available."""
        ...

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        ...

    def to(self, device: Any, /) -> Self:
        """Move the weights."""
        ...

    def encode(self, frames: UInt8[Tensor, "clip frame height width 3"]) -> Int64[Tensor, "clip region"]:
        """Return the code of every region, ordered by frame, row and column; independent of the clip's batch."""
        ...

    def word_logits(self, code_ids: Int64[Tensor, "clip region"]) -> Float[Tensor, "clip vocab"]:
        """Return word scores of clips given as codes, over the vocabulary of its training."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of everything that determines the codes, the same on every machine."""
        ...


TOKENIZERS: Registry[Any] = Registry(
    "video tokenizer",
    "evilm.video_tokenizers",
    {"evilm_tokenizer": "evilm.model.tokenizers.semantic_vq:VideoTokenizer"},
)
"""Classes with `from_pretrained(uri)`, by the `model_type` in the config.json of their saved models."""


def load_tokenizer(uri: str) -> BaseVideoTokenizer:
    """Load a tokenizer of any registered kind, on the CPU and in eval mode.

    Raises:
        CheckpointError: there is no tokenizer, or its kind is neither built in nor installed.
    """
    kind = pretrained.model_type(uri, default="evilm_tokenizer")
    if kind not in TOKENIZERS.names():  # never import a module just because a file names it
        raise CheckpointError(
            f"{uri} holds a {kind!r}; installed video tokenizers are {', '.join(TOKENIZERS.names())}; others register "
            "with an entry point in evilm.video_tokenizers"
        )
    try:
        return TOKENIZERS.get(kind).from_pretrained(uri)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
