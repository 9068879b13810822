"""The interface of a video tokenizer, by which codes are made, checked and shown; and the registry of their kinds."""

from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from evilm.config.models import CodebookConfig
from evilm.errors import CheckpointError, ConfigError
from evilm.model import pretrained
from evilm.registry import Registry


class BaseVideoTokenizer(Protocol):
    """A saved model that gives each region of a clip one of a fixed number of codes."""

    @property
    def codebook(self) -> CodebookConfig:
        """Settings of the codebook; `num_codes` and `min_usage` (0 accepts any usage) are what others read."""
        ...

    @property
    def grid(self) -> int:
        """Regions per side of a frame."""
        ...

    @property
    def num_frames(self) -> int:
        """Frames of the clips that it was trained on."""
        ...

    @property
    def independent_frames(self) -> bool:
        """Whether a frame's codes stay the same whatever frames are beside it.

        If not, models take all frames of a clip that are stored, since codes of some of them would be others.
        """
        ...

    @property
    def has_words(self) -> bool:
        """Whether `word_logits` can be called."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def to(self, device: Any, /) -> Self:
        """Move the weights."""
        ...

    def encode(self, frames: UInt8[Tensor, "clip frame height width 3"]) -> Int64[Tensor, "clip region"]:
        """Return the code of every region, frame by frame, row by row; the same in whatever batch a clip is."""
        ...

    def word_logits(self, code_ids: Int64[Tensor, "clip region"]) -> Float[Tensor, "clip vocab"]:
        """Return scores of the words that codes stand for, over the vocabulary of its training."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of all that decides which code a region gets, the same on every machine."""
        ...


TOKENIZERS: Registry[Any] = Registry(
    "video tokenizer",
    "evilm.video_tokenizers",
    {"evilm_tokenizer": "evilm.model.tokenizers.semantic_vq:VideoTokenizer"},
)
"""Classes with `from_pretrained(uri)` by the `model_type` in the config.json of what they saved."""


def load_tokenizer(uri: str) -> BaseVideoTokenizer:
    """Load a tokenizer of any registered kind, on the CPU and in eval mode.

    Raises:
        CheckpointError: none is there, or its kind is neither built in nor installed.
    """
    kind = pretrained.model_type(uri, default="evilm_tokenizer")
    if kind not in TOKENIZERS.names():  # a file may name no module of its own to be imported
        raise CheckpointError(
            f"{uri} holds a {kind!r}; video tokenizers here are {', '.join(TOKENIZERS.names())}, others are installed "
            "with an entry point in evilm.video_tokenizers"
        )
    try:
        return TOKENIZERS.get(kind).from_pretrained(uri)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
