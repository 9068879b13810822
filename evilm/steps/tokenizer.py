"""Training of the semantic video tokenizer: words of the caption from codes, and a codebook that stays alive.

Paper: Eq. 5-7, Sec. 3.3. A random codebook with straight-through gradients collapses within an epoch, hence the
data-dependent start and the revival of dead codes, both settings.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from evilm.config.model import VideoTokenizerConfig
from evilm.model.losses import LossSum, focal_word_loss
from evilm.model.metrics import chance_precision, mean_average_precision
from evilm.model.tokenizer import TokenizerOutput, VideoTokenizer
from evilm.steps.base import Objective
from evilm.steps.batch import TokenizerBatch

_POOL = 4096  # regions of the newest batch that dead codes may be moved onto


def tokenizer_losses(out: TokenizerOutput, batch: TokenizerBatch, settings: VideoTokenizerConfig) -> dict[str, LossSum]:
    """Eq. 6 over clips, and the two terms of Eq. 7 over regions."""
    no_accuracy = out.commitment_loss.new_full((), -1.0)
    clips, regions = len(batch.clip_ids), out.code_ids.numel()
    word = focal_word_loss(out.word_logits, batch.caption_words, settings.focal)
    return {
        "word": LossSum(word * clips, clips, no_accuracy),
        "commitment": LossSum(out.commitment_loss * regions, regions, no_accuracy),
        "codebook": LossSum(out.codebook_loss * regions, regions, no_accuracy),
    }


class TokenizerObjective(Objective):
    """The tokenizer with its losses."""

    def __init__(self, tokenizer: VideoTokenizer, settings: VideoTokenizerConfig) -> None:
        super().__init__()
        self.tokenizer, self.settings = tokenizer, settings
        codebook = settings.codebook
        self.weights = {"word": 1.0, "commitment": codebook.commitment_weight}
        if codebook.update == "gradient":
            self.weights["codebook"] = codebook.codebook_weight
        self.sparse = self.together = codebook.update == "ema"
        self._newest: torch.Tensor | None = None

    def forward(self, batch: TokenizerBatch) -> dict[str, LossSum]:
        """Word loss (Eq. 6) and the two squared terms of Eq. 7."""
        out = self.tokenizer(batch.frames)
        if self.training:
            self._newest = out.vectors.detach().flatten(0, -2)
        losses = tokenizer_losses(out, batch, self.settings)
        return {name: losses[name] for name in self.weights}

    def counts(self, batch: TokenizerBatch) -> dict[str, int]:
        """Clips, and for the terms of the codebook regions."""
        clips = len(batch.clip_ids)
        regions = clips * batch.frames.shape[1] * self.settings.grid**2
        return {name: clips if name == "word" else regions for name in self.weights}

    def prepare(self, batches: Callable[[int], Iterable[Any]], seed: int) -> None:
        """Start the codebook with k-means over the regions of the first batches."""
        codebook = self.settings.codebook
        if codebook.init != "kmeans":
            return
        self.eval()
        with torch.no_grad():
            vectors = torch.cat(
                [self.tokenizer(b.frames).vectors.flatten(0, -2) for b in batches(codebook.init_batches)]
            )
        self.train()
        self.tokenizer.quantizer.init_kmeans(vectors, seed)

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebook's means (ema) and, now and then, dead codes onto regions of the newest batch."""
        codebook = self.settings.codebook
        if codebook.revive_below <= 0 or step % codebook.revive_every or self._newest is None:
            return
        pool = self._newest[:_POOL].contiguous()
        quantizer = self.tokenizer.quantizer
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(quantizer.usage)
            pool = _shared(pool)  # every worker revives the same codes onto the same regions
        quantizer.revive(pool, seed * 1_000_003 + step)

    def collect_counts(self) -> None:
        """How often codes were chosen, which decides on their revival."""
        usage = self.tokenizer.quantizer.usage
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(usage)
            if dist.get_rank() != 0:
                usage.zero_()

    def drop_counts(self) -> None:
        """As if this worker had seen nothing since the last revival."""
        self.tokenizer.quantizer.usage.zero_()

    def scores(self) -> "TokenizerScores":
        """Word mAP, losses and code usage of a split."""
        return TokenizerScores(self)


def _shared(pool: torch.Tensor) -> torch.Tensor:
    """The pool of rank 0, whose batch may be one clip larger."""
    size = torch.tensor(len(pool), device=pool.device)
    dist.broadcast(size, src=0)
    if dist.get_rank() != 0:
        pool = pool.new_empty(int(size), pool.shape[1])
    dist.broadcast(pool, src=0)
    return pool


class TokenizerScores:
    """Code usage and word mAP over a whole split; batch figures of either mislead."""

    def __init__(self, objective: TokenizerObjective) -> None:
        self._objective = objective
        self._counts = np.zeros(objective.settings.codebook.num_codes, dtype=np.int64)
        self._logits: list[np.ndarray] = []
        self._words: list[np.ndarray] = []
        self._sums: dict[str, list[float]] = {}

    def add(self, batch: TokenizerBatch, device: torch.device) -> None:
        """Score one batch."""
        batch = batch.to(device)
        objective = self._objective
        out = objective.tokenizer(batch.frames)
        for name, (total, count, _) in tokenizer_losses(out, batch, objective.settings).items():
            sums = self._sums.setdefault(name, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + float(total), sums[1] + float(count)
        self._counts += np.bincount(out.code_ids.flatten().cpu().numpy(), minlength=len(self._counts))
        self._logits.append(out.word_logits.float().cpu().numpy())
        self._words.append(batch.caption_words.cpu().numpy())

    def state(self) -> dict[str, Any]:
        """Counts of codes, and scores of every clip."""
        return {"counts": self._counts, "logits": self._logits, "words": self._words, "sums": self._sums}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """word_loss; word_map and what constant scores would reach; code_usage (share of the codebook used),
        code_perplexity, and the number of regions they were counted on.
        """
        counts = np.sum([state["counts"] for state in states], axis=0)
        logits = np.concatenate([x for state in states for x in state["logits"]])
        words = np.concatenate([x for state in states for x in state["words"]])
        share = counts[counts > 0] / max(1, counts.sum())
        metrics = {
            "code_usage": float((counts > 0).mean()),
            "code_perplexity": float(np.exp(-(share * np.log(share)).sum())),
            "word_map": float(mean_average_precision(logits, words)),
            "word_map_chance": float(chance_precision(words)),
            "num_regions": float(counts.sum()),
        }
        for name in {name: None for state in states for name in state["sums"]}:
            total, count = (sum(state["sums"][name][k] for state in states if name in state["sums"]) for k in range(2))
            metrics[f"{name}_loss"] = total / max(1.0, count)
        return metrics
