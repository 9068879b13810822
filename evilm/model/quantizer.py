"""The vector quantizer of the video tokenizer: look-up, moving the codebook, keeping its codes alive. Eq. 4, 7."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from evilm.config.model import CodebookConfig
from evilm.model.losses import quantizer_losses

_CHUNK = 8192  # regions compared with the whole codebook at a time
_KMEANS_VECTORS_PER_CODE = 64


class Quantized(NamedTuple):
    """Codes in place of vectors, with the gradient of the vectors, and the terms of Eq. 7."""

    codes: Float[Tensor, "clip region code_dim"]
    code_ids: Int64[Tensor, "clip region"]
    codebook_loss: Float[Tensor, ""]
    commitment_loss: Float[Tensor, ""]


class Quantizer(nn.Module):
    """A codebook on the unit sphere.

    The rows may have any length; they are normalised whenever they are compared or used. `usage` counts how often each
    code was chosen in training since the last revival, on this worker.
    """

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        rows = F.normalize(torch.randn(config.num_codes, config.code_dim), dim=-1)
        self.codebook = nn.Parameter(rows, requires_grad=config.update == "gradient")
        self.usage: Tensor
        self.mean_sum: Tensor
        self.register_buffer("usage", torch.zeros(config.num_codes, dtype=torch.int64))
        if config.update == "ema":
            self.register_buffer("mean_sum", rows.clone())

    def forward(self, vectors: Float[Tensor, "clip region code_dim"]) -> Quantized:
        """The nearest code of every l2-normalised vector; in training also counts, and moves the means (ema).

        The gradient at the codes is copied straight to the vectors. Paper: Eq. 4 and 7, Sec. 3.3.
        """
        code_ids = self.nearest(vectors.flatten(0, 1)).view(vectors.shape[:2])
        codes = self.lookup(code_ids)
        losses = quantizer_losses(vectors.flatten(0, 1), codes.flatten(0, 1))
        if self.training:
            self._observe(vectors.detach().flatten(0, 1), code_ids.flatten())
        straight_through = vectors + (codes - vectors).detach()
        return Quantized(straight_through, code_ids, losses.codebook, losses.commitment)

    def lookup(self, code_ids: Int64[Tensor, "*regions"]) -> Float[Tensor, "*regions code_dim"]:
        """The unit vectors of codes."""
        return F.normalize(self.codebook[code_ids], dim=-1)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "region code_dim"]) -> Int64[Tensor, "region"]:
        """The code nearest to each unit vector: on the sphere the smallest distance is the largest cosine. Eq. 4."""
        return _nearest(vectors, self.codebook)

    @torch.no_grad()
    def init_kmeans(self, vectors: Float[Tensor, "region code_dim"], seed: int, rounds: int = 10) -> None:
        """Put the codes where the encoder's vectors are."""
        centres = kmeans(vectors.to(self.codebook), self.config.num_codes, seed, rounds)
        self._move(torch.arange(self.config.num_codes, device=centres.device), centres)

    @torch.no_grad()
    def revive(self, pool: Float[Tensor, "region code_dim"], seed: int) -> int:
        """Move codes that are hardly chosen onto random vectors of the pool; how many were moved.

        Hardly: less often than `revive_below` x the mean since the last revival. The least used go first where the
        pool is small. `usage` starts again at 0. With several workers, sum `usage` over them and share one pool before.
        """
        usage = self.usage.float()
        dead = (usage < self.config.revive_below * usage.mean()).nonzero().flatten()
        dead = dead[usage[dead].argsort(stable=True)][: len(pool)]
        if len(dead):
            self._move(
                dead, F.normalize(pool[_pick(len(pool), len(dead), seed, pool.device)].to(self.codebook), dim=-1)
            )
        self.usage.zero_()
        return len(dead)

    def _move(self, code_ids: Int64[Tensor, "some"], vectors: Float[Tensor, "some code_dim"]) -> None:
        """Overwrite codes, and what ema remembers of them."""
        self.codebook.data[code_ids] = vectors
        if self.config.update == "ema":
            self.mean_sum[code_ids] = vectors

    @torch.no_grad()
    def _observe(self, vectors: Float[Tensor, "region code_dim"], code_ids: Int64[Tensor, "region"]) -> None:
        """Count codes; with ema also move them towards the mean of the regions that chose them, over all workers."""
        finite = vectors.isfinite().all(-1)  # one NaN would spoil a code for good, in a step that is skipped for it
        vectors = vectors.masked_fill(~finite[:, None], 0)
        counts = torch.zeros_like(self.usage).index_add_(0, code_ids, finite.to(code_ids))
        self.usage += counts
        if self.config.update != "ema":
            return
        sums = torch.zeros_like(self.mean_sum).index_add_(0, code_ids, vectors.to(self.mean_sum))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        # Only direction matters on the sphere, so no count is kept; a code that nobody chose stays where it is.
        moved = torch.where(counts[:, None] > 0, self.mean_sum.lerp(sums, 1 - self.config.ema_decay), self.mean_sum)
        self.mean_sum.copy_(moved)
        self.codebook.data.copy_(F.normalize(moved, dim=-1))


def kmeans(
    vectors: Float[Tensor, "region code_dim"], num_codes: int, seed: int, rounds: int = 10
) -> Float[Tensor, "num_codes code_dim"]:
    """Cosine k-means: unit centres, started on random vectors; an empty one moves to the worst served vector.

    Uses at most 64 vectors per centre. Where there are fewer vectors than centres, the rest are random directions.
    """
    vectors = F.normalize(vectors.float(), dim=-1)
    order = _pick(len(vectors), min(len(vectors), num_codes * _KMEANS_VECTORS_PER_CODE), seed, vectors.device)
    vectors = vectors[order]
    missing = max(0, num_codes - len(vectors))
    noise = torch.randn(missing, vectors.shape[1], generator=torch.Generator().manual_seed(seed))
    centres = torch.cat([vectors[:num_codes], F.normalize(noise, dim=-1).to(vectors)])
    if missing:
        return centres
    for _ in range(rounds):
        nearest = _nearest(vectors, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        empty = (torch.bincount(nearest, minlength=num_codes) == 0).nonzero().flatten()
        served = (vectors * centres[nearest]).sum(-1)
        centres = F.normalize(sums, dim=-1)
        centres[empty] = vectors[served.argsort(stable=True)[: len(empty)]]
    return centres


def _nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Row of the codebook with the largest cosine, in float32 whatever autocast says: near ties decide labels."""
    with torch.autocast(vectors.device.type, enabled=False):
        rows = F.normalize(codebook.float(), dim=-1).T
        parts = [(chunk.float() @ rows).argmax(-1) for chunk in vectors.split(_CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=vectors.device)


def _pick(size: int, wanted: int, seed: int, device: torch.device) -> Tensor:
    """`wanted` distinct row numbers below `size`; drawn on CPU, so the same on every device."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:wanted].to(device)
