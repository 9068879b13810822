"""Losses of both trainings. Pre-training losses are sums, from which workers compute one common mean."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from evilm.config.models import FocalConfig


class LossSum(NamedTuple):
    """A loss summed over `num_items` items, `correct` of which were predicted correctly (-1: not applicable).

    `num_items` is known on the host, from shapes; `total` and `correct` stay on the device.

    The mean over all workers is the sum of totals / the sum of items; a mean of the workers' means would weight an
    item by how many others its worker has.
    """

    total: Float[Tensor, ""]
    num_items: int
    correct: Tensor

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Divide the total by the number of items; without items, return 0 with a gradient of 0."""
        return self.total / max(self.num_items, 1)


def classification(logits: Float[Tensor, "item classes"], targets: Int64[Tensor, "item"]) -> LossSum:
    """Sum cross-entropy over items and count the correct predictions.

    Without items the total is 0 but still attached to the graph, so that every worker runs the same backward pass.
    """
    logits = logits.float()
    if targets.shape[0] == 0:
        return LossSum(logits.sum(), 0, torch.zeros((), dtype=torch.int64, device=logits.device))
    total = F.cross_entropy(logits, targets, reduction="sum")
    return LossSum(total, targets.shape[0], (logits.detach().argmax(-1) == targets).sum())


def mvm_loss(logits: Float[Tensor, "region num_codes"], code_ids: Int64[Tensor, "region"]) -> LossSum:
    """Compute masked video modelling, -log p(code); pass masked regions only. Paper: Eq. 3."""
    return classification(logits, code_ids)


def mlm_loss(logits: Float[Tensor, "word vocab"], targets: Int64[Tensor, "word"]) -> LossSum:
    """Compute masked language modelling, -log p(word); pass masked words only. Paper: Sec. 3.2."""
    return classification(logits, targets)


def vtm_loss(logits: Float[Tensor, "pair 2"], matched: Bool[Tensor, "pair"]) -> LossSum:
    """Compute video-text matching, two-way cross-entropy with class 1 = matched. Paper: Sec. 3.2."""
    return classification(logits, matched.long())


def focal_word_loss(
    logits: Float[Tensor, "clip vocab"], caption_words: Bool[Tensor, "clip vocab"], config: FocalConfig
) -> Float[Tensor, ""]:
    """Compute the multi-label loss of caption words: mean over clips, times `config.weight`.

    A word in the caption costs -(1-p)^gamma_positive log p, any other word -p^gamma_negative log(1-p).
    Paper: Eq. 6. Differs: the printed equation lacks the minus sign; minimising it would unlearn the words.
    """
    logits = logits.float()
    p = logits.sigmoid()
    if config.stop_weight_gradient:
        p = p.detach()
    # log p = logsigmoid(x) and log(1-p) = logsigmoid(-x) stay finite where p rounds to 0 or 1
    positive = -_power(1 - p, config.gamma_positive) * F.logsigmoid(logits)
    negative = -_power(p, config.gamma_negative) * F.logsigmoid(-logits)
    per_word = torch.where(caption_words, positive, negative)
    per_clip = per_word.mean(-1) if config.reduction == "mean" else per_word.sum(-1)
    return config.weight * per_clip.mean()


def _power(base: Tensor, exponent: float) -> Tensor | float:
    """Compute base ** exponent with finite gradients: 0 ** 0.5 has an infinite one; exponents 0 and 1 need no power."""
    if exponent == 0:
        return 1.0
    return base if exponent == 1 else base.clamp_min(1e-6) ** exponent


class QuantizerLosses(NamedTuple):
    """The two squared terms of Eq. 7, unweighted."""

    codebook: Float[Tensor, ""]
    commitment: Float[Tensor, ""]


def quantizer_losses(
    vectors: Float[Tensor, "region code_dim"], codes: Float[Tensor, "region code_dim"]
) -> QuantizerLosses:
    """Compute ||sg[E(X)] - C_q||^2, which moves the codes, and ||E(X) - sg[C_q]||^2, which moves the encoder.

    The squared norm is summed over code_dim and averaged over regions. Both sides are l2-normalised here, so each
    term is 2 - 2 cos, between 0 and 4. Paper: Eq. 7. Differs: Eq. 7 does not say how to reduce over regions; we take
    the mean.
    """
    codebook = (vectors.detach() - codes).square().sum(-1).mean()
    commitment = (vectors - codes.detach()).square().sum(-1).mean()
    return QuantizerLosses(codebook, commitment)
