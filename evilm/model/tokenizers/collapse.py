"""Reject a collapsed video tokenizer: a model learns nothing from labels with a handful of distinct codes."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from evilm.config.models import CodebookConfig
from evilm.errors import CollapseError

logger = logging.getLogger(__name__)

_FEW = 8  # distinct codes always required; with fewer than 64 regions or codes, an eighth of them


def require_code_usage(codebook: CodebookConfig, num_used: int, num_regions: int, what: str) -> None:
    """Check that enough distinct codes are used.

    Args:
        codebook: settings of the codebook; `min_usage` 0 turns the check off.
        num_used: distinct codes among those regions.
        num_regions: coded regions; these can't use more codes than there are regions.
        what: the tokenizer or codes and the split, with which the message starts.

    Raises:
        CollapseError: fewer codes are used than `min_usage` requires.
    """
    if not codebook.min_usage or not num_regions:
        return
    attainable = min(codebook.num_codes, num_regions)
    wanted = max(math.ceil(codebook.min_usage * attainable), min(_FEW, attainable // 8), 1)
    if num_used >= wanted:
        return
    limit = f" ({attainable:,} could be used at most)" if attainable < codebook.num_codes else ""
    raise CollapseError(
        f"{what}: the tokenizer has collapsed, it uses {num_used} of its {codebook.num_codes:,} codes for "
        f"{num_regions:,} regions{limit}; {wanted} or more are accepted (arch.codebook.min_usage = "
        f"{codebook.min_usage:g}). Train it again, with --overwrite {_advice(codebook)}; or accept it: run "
        "train_tokenizer once more with the same settings and --arch.codebook.min-usage 0 (commands that build the "
        "tokenizer take it as --set train_tokenizer.arch.codebook.min_usage=0)"
    )


def require_usage_on_val(codebook: CodebookConfig, summary: Mapping[str, Any], what: str) -> None:
    """Check the code usage that a tokenizer's training measured on the val split at its end.

    Without that record (no val split, an older training, a copy of only the weights), log a warning: usage is then
    first checked on the codes of the train split.

    Args:
        summary: the training's summary; empty if it has none.
        what: the tokenizer, with which the message starts.

    Raises:
        CollapseError: too few codes are used.
    """
    metrics = summary.get("val") or {}
    if not {"code_usage", "num_regions"} <= metrics.keys():
        logger.warning(
            "%s has no record of its code usage on a val split; collapse is checked on its codes of the train split, "
            "once they are computed", what,
        )  # fmt: skip
        return
    num_used = round(metrics["code_usage"] * codebook.num_codes)
    require_code_usage(codebook, num_used, int(metrics["num_regions"]), f"{what}, split val")


def require_usage_of_labels(codebook: CodebookConfig, histograms: Mapping[str, Sequence[int]], what: str) -> None:
    """Check the codes of the train split, or of the largest split if there is no train split.

    Args:
        histograms: by split, how often each code was used.
        what: the codes, with which the message starts.

    Raises:
        CollapseError: too few codes are used.
    """
    if not histograms:
        return
    split = "train" if "train" in histograms else max(histograms, key=lambda name: sum(histograms[name]))
    counts = histograms[split]
    require_code_usage(codebook, sum(count > 0 for count in counts), sum(counts), f"{what}, split {split}")


def _advice(codebook: CodebookConfig) -> str:
    """Suggest settings against collapse that this codebook does not use yet."""
    flags = []
    if codebook.init != "kmeans":
        flags.append("--arch.codebook.init kmeans")
    if codebook.revive_below <= 0:
        flags.append("--arch.codebook.revive-below 0.1")
    if not flags:
        return "and more clips, a lower --optim.lr or a higher --arch.codebook.revive-below"
    return f"{' '.join(flags)}, or more clips"
