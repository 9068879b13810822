"""A prediction with its probability."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from evilm.errors import ConfigError


class Prediction(NamedTuple):
    """A predicted word, code, answer, option or class with its probability."""

    value: str | int
    probability: float


def likeliest(
    logits: Float[Tensor, "item score"], top: int, names: Sequence[str] | None = None
) -> list[list[Prediction]]:
    """Return the `top` likeliest entries of each row, the likeliest first.

    Args:
        top: entries to return of each row; fewer if a row is shorter.
        names: of the entries; None names them by their index.

    Raises:
        ConfigError: `top` is not at least 1.
    """
    if not isinstance(top, int | np.integer) or top < 1:
        raise ConfigError(f"top = {top!r}; use a whole number of at least 1")
    best = logits.float().softmax(-1).topk(min(int(top), logits.shape[-1]), dim=-1)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[Prediction(names[int(i)] if names else i, p) for i, p in zip(*row, strict=True)] for row in rows]
