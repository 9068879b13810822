"""The objective of the semantic video tokenizer: predict caption words from codes, and keep the codebook in use.

Paper: Eq. 5-7, Sec. 3.3. A random codebook with straight-through gradients collapses within an epoch. Two settings
prevent that: initialisation from data, and revival of dead codes.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from evilm.config.models import VideoTokenizerConfig
from evilm.dataloader.collate import TokenizerBatch
from evilm.model.losses import LossSum, focal_word_loss
from evilm.model.metrics import chance_precision, mean_average_precision
from evilm.model.tokenizers.quantizer import kmeans_of_sample, kmeans_rows
from evilm.model.tokenizers.semantic_vq import TokenizerOutput, VideoTokenizer
from evilm.objectives.objective import Objective

logger = logging.getLogger(__name__)

_POOL = 4096  # vectors of a step that may replace dead codes, spread evenly over its regions


def tokenizer_losses(out: TokenizerOutput, batch: TokenizerBatch, settings: VideoTokenizerConfig) -> dict[str, LossSum]:
    """Compute Eq. 6 over clips and the two terms of Eq. 7 over regions."""
    no_accuracy = out.commitment_loss.new_full((), -1.0)
    # The size of a tensor: torch.compile would compile again for each length of `batch.clip_ids`, a list.
    clips, regions = batch.frames.shape[0], out.code_ids.numel()
    word = focal_word_loss(out.word_logits, batch.caption_words, settings.focal)
    return {
        "word": LossSum(word * clips, clips, no_accuracy),
        "commitment": LossSum(out.commitment_loss * regions, regions, no_accuracy),
        "codebook": LossSum(out.codebook_loss * regions, regions, no_accuracy),
    }


class TokenizerObjective(Objective):
    """The tokenizer with its losses, and the upkeep of its codebook.

    Forward passes do not communicate. Regions are numbered within a global step (clip by clip, over all micro-batches
    and workers), so the vectors used by k-means and revival do not depend on how a step is divided.
    """

    def __init__(self, tokenizer: VideoTokenizer, settings: VideoTokenizerConfig) -> None:
        super().__init__()
        self.tokenizer, self.settings = tokenizer, settings
        codebook = settings.codebook
        self.weights = {"word": 1.0, "commitment": codebook.commitment_weight}
        if codebook.update == "gradient":
            self.weights["codebook"] = codebook.codebook_weight
        self.pool: Tensor
        self.register_buffer("pool", torch.zeros(_POOL, codebook.code_dim), persistent=False)
        self._pool_size = 0

    def forward(self, batch: TokenizerBatch) -> dict[str, LossSum]:
        """Compute the word loss (Eq. 6) and the two squared terms of Eq. 7."""
        out = self.tokenizer(batch.frames)
        if self.training and self.settings.codebook.revive_below > 0:
            self._fill_pool(batch, out.vectors.detach())
        losses = tokenizer_losses(out, batch, self.settings)
        return {name: losses[name] for name in self.weights}

    def counts(self, batch: TokenizerBatch) -> dict[str, int]:
        """Count clips for the word loss and regions for the codebook terms."""
        clips = len(batch.clip_ids)
        regions = clips * batch.frames.shape[1] * self.settings.grid**2
        return {name: clips if name == "word" else regions for name in self.weights}

    def prepare(self, batches: Callable[[int], Iterable[Any]], seed: int) -> None:
        """Initialise the codebook by k-means over the regions of the first steps on all workers.

        Every worker computes the same centres from the same vectors, up to the order of summation on a GPU.
        """
        codebook = self.settings.codebook
        if codebook.init != "kmeans":
            return
        pieces, size = self._first_vectors(batches(codebook.init_batches))
        if size < codebook.num_codes and _rank() == 0:
            enough = -(-codebook.num_codes * codebook.init_batches // size)
            logger.warning(
                "k-means start: %d vectors for %d codes, so no k-means was done and the other %d codes are random "
                "directions; raise arch.codebook.init_batches from %d to at least %d",
                size, codebook.num_codes, codebook.num_codes - size, codebook.init_batches, enough,
            )  # fmt: skip
        rows = kmeans_rows(size, codebook.num_codes, seed).to(self.pool.device)
        sample = self.pool.new_zeros(len(rows), codebook.code_dim)
        for first, vectors in pieces:
            sample = _take_rows(sample, rows, first, vectors)
        _sum_over_workers(sample)
        self.tokenizer.quantizer.set_codes(kmeans_of_sample(sample, codebook.num_codes, seed))

    @torch.no_grad()
    def _first_vectors(self, batches: Iterable[TokenizerBatch]) -> tuple[list[tuple[int, Tensor]], int]:
        """Encode this worker's micro-batches of the first steps.

        Returns:
            The vectors of each micro-batch with the number of its first region, counted over these steps; and the
            number of regions of these steps on all workers.
        """
        pieces: list[tuple[int, Tensor]] = []
        before, step_size, previous = 0, 0, -1
        self.eval()
        for batch in batches:
            vectors = self.tokenizer(batch.frames).vectors
            if batch.first_clip <= previous:  # the first micro-batch of the next step
                before += step_size
            previous = batch.first_clip
            first, step_size = _place(batch, vectors)
            pieces.append((before + first, vectors.flatten(0, 1)))
        self.train()
        return pieces, before + step_size

    @torch.no_grad()
    def _fill_pool(self, batch: TokenizerBatch, vectors: Float[Tensor, "clip region code_dim"]) -> None:
        """Copy the vectors selected for the pool to their rows."""
        first, step_size = _place(batch, vectors)
        size = self._pool_size = min(_POOL, step_size)
        rows = torch.arange(size, device=vectors.device) * step_size // size
        self.pool[:size] = _take_rows(self.pool[:size], rows, first, vectors.flatten(0, 1))

    def after_step(self, step: int, seed: int) -> None:
        """Update the codebook's means (ema) and, every `revive_every` steps, move dead codes onto regions of the step.

        Never waits for the device; ignores vectors that are not finite.
        """
        codebook, quantizer = self.settings.codebook, self.tokenizer.quantizer
        quantizer.move_means()
        if codebook.revive_below <= 0 or not self._pool_size:
            return
        if step % codebook.revive_every == 0:
            pool = self.pool[: self._pool_size]
            _sum_over_workers(pool)
            _sum_over_workers(quantizer.usage)
            quantizer.revive(pool, seed * 1_000_003 + step)
        self.pool.zero_()

    def collect_counts(self) -> None:
        """Sum the code usage, which decides on revival, on rank 0."""
        usage = self.tokenizer.quantizer.usage
        _sum_over_workers(usage)
        if _rank() != 0:
            usage.zero_()

    def drop_counts(self) -> None:
        """Reset this worker's code usage, as after a revival."""
        self.tokenizer.quantizer.usage.zero_()

    def scores(self) -> "TokenizerScores":
        """Create an accumulator of word mAP, losses and code usage."""
        return TokenizerScores(self)


def _place(batch: TokenizerBatch, vectors: Float[Tensor, "clip region code_dim"]) -> tuple[int, int]:
    """Return the number of a micro-batch's first region within its step, and the number of regions in the step."""
    clips, regions = vectors.shape[:2]
    assert batch.step_clips or _world() == 1, "with several workers, batches must know their place in the step"
    return batch.first_clip * regions, (batch.step_clips or clips) * regions


def _take_rows(
    rows_so_far: Float[Tensor, "row code_dim"],
    wanted: Int64[Tensor, " row"],
    first: int,
    vectors: Float[Tensor, "region code_dim"],
) -> Float[Tensor, "row code_dim"]:
    """Fill the rows whose wanted region is in `vectors`; these are the regions from number `first` on."""
    local = wanted - first
    mine = (local >= 0) & (local < len(vectors))
    return torch.where(mine[:, None], vectors[local.clamp(0, len(vectors) - 1)], rows_so_far)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0


def _sum_over_workers(tensor: Tensor) -> None:
    """Sum a tensor over all workers, in place."""
    if _world() > 1:
        dist.all_reduce(tensor)


class TokenizerScores:
    """Accumulates code usage and word mAP over a whole split; figures per batch would mislead."""

    def __init__(self, objective: TokenizerObjective) -> None:
        self._objective = objective
        self._code_counts = np.zeros(objective.settings.codebook.num_codes, dtype=np.int64)
        self._word_logits = [np.zeros((0, objective.settings.vocab_size), dtype=np.float32)]
        self._caption_words = [np.zeros((0, objective.settings.vocab_size), dtype=bool)]
        self._sums: dict[str, np.ndarray] = {}

    def add(self, batch: TokenizerBatch, device: torch.device) -> None:
        """Score one batch."""
        objective = self._objective
        on_device = batch.to(device)
        out = objective.tokenizer(on_device.frames)
        for name, (total, count, _) in tokenizer_losses(out, on_device, objective.settings).items():
            self._sums[name] = self._sums.get(name, np.zeros(2)) + np.array([float(total), float(count)])
        self._code_counts += np.bincount(out.code_ids.flatten().cpu().numpy(), minlength=len(self._code_counts))
        self._word_logits.append(out.word_logits.float().cpu().numpy())
        self._caption_words.append(batch.caption_words.cpu().numpy())

    def state(self) -> dict[str, Any]:
        """Return code counts, scores and words of every clip, and loss sums in float64; empty without a batch."""
        logits, words = np.concatenate(self._word_logits), np.concatenate(self._caption_words)
        return {"counts": self._code_counts, "logits": logits, "words": words, "sums": self._sums}

    def result(self, states: list[dict[str, Any]]) -> dict[str, float]:
        """Compute metrics from the states of all workers.

        These are word_loss, word_map and its value for constant scores, code_usage (share of the codebook in use),
        code_perplexity, and the number of regions behind the last two.
        """
        counts = np.sum([state["counts"] for state in states], axis=0)
        logits = np.concatenate([state["logits"] for state in states])
        words = np.concatenate([state["words"] for state in states])
        share = counts[counts > 0] / max(1, counts.sum())
        metrics = {
            "code_usage": float((counts > 0).mean()),
            "code_perplexity": float(np.exp(-(share * np.log(share)).sum())),
            "word_map": float(mean_average_precision(logits, words)),
            "word_map_chance": float(chance_precision(words)),
            "num_regions": float(counts.sum()),
        }
        for name in {name: None for state in states for name in state["sums"]}:
            total, count = np.sum([state["sums"][name] for state in states if name in state["sums"]], axis=0)
            metrics[f"{name}_loss"] = float(total / max(1.0, count))
        return metrics
