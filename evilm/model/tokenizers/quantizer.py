"""The vector quantizer of the video tokenizer: look-up, codebook updates and revival of dead codes. Eq. 4, 7."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from evilm.config.models import CodebookConfig
from evilm.model.losses import quantizer_losses

_CHUNK = 8192  # regions compared with the codebook at a time
_KMEANS_VECTORS_PER_CODE = 64


class Quantized(NamedTuple):
    """The codes that replace the vectors, with straight-through gradient, and the terms of Eq. 7."""

    codes: Float[Tensor, "clip region code_dim"]
    code_ids: Int64[Tensor, "clip region"]
    codebook_loss: Float[Tensor, ""]
    commitment_loss: Float[Tensor, ""]


class Quantizer(nn.Module):
    """A codebook on the unit sphere.

    Rows may have any length; they are normalised whenever they are compared or used. `usage` counts how often this
    worker chose each code in training since the last revival. With `update: ema`, `step_counts` and `step_sums`
    accumulate the vectors assigned to each code in this step; they are 0 between steps and therefore not saved.
    """

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.config = config
        rows = F.normalize(torch.randn(config.num_codes, config.code_dim), dim=-1)
        self.codebook = nn.Parameter(rows, requires_grad=config.update == "gradient")
        self.usage: Tensor
        self.mean_sum: Tensor
        self.step_counts: Tensor
        self.step_sums: Tensor
        self.register_buffer("usage", torch.zeros(config.num_codes, dtype=torch.int64))
        if config.update == "ema":
            self.register_buffer("mean_sum", rows.clone())
            self.register_buffer("step_counts", torch.zeros(config.num_codes), persistent=False)
            self.register_buffer("step_sums", torch.zeros_like(rows), persistent=False)

    def forward(self, vectors: Float[Tensor, "clip region code_dim"]) -> Quantized:
        """Quantize l2-normalised vectors to their nearest codes; in training, count the assignments too.

        The gradient of the codes is copied to the vectors (straight-through). Paper: Eq. 4 and 7, Sec. 3.3.
        """
        code_ids = self.nearest(vectors.flatten(0, 1)).view(vectors.shape[:2])
        codes = self.lookup(code_ids)
        losses = quantizer_losses(vectors.flatten(0, 1), codes.flatten(0, 1))
        if self.training:
            self._observe(vectors.detach().flatten(0, 1), code_ids.flatten())
        straight_through = vectors + (codes - vectors).detach()
        return Quantized(straight_through, code_ids, losses.codebook, losses.commitment)

    def lookup(self, code_ids: Int64[Tensor, "*regions"]) -> Float[Tensor, "*regions code_dim"]:
        """Return the unit vectors of codes."""
        return F.normalize(self.codebook[code_ids], dim=-1)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "region code_dim"]) -> Int64[Tensor, "region"]:
        """Find the code nearest to each unit vector: on the sphere, that with the largest cosine. Eq. 4."""
        return _nearest(vectors, self.codebook)

    @torch.no_grad()
    def init_kmeans(self, vectors: Float[Tensor, "region code_dim"], seed: int, rounds: int = 10) -> None:
        """Initialise the codes with k-means centres of the encoder's vectors."""
        self.set_codes(kmeans(vectors.to(self.codebook), self.config.num_codes, seed, rounds))

    @torch.no_grad()
    def set_codes(self, vectors: Float[Tensor, "num_codes code_dim"]) -> None:
        """Replace the whole codebook and its moving averages."""
        self.codebook.data.copy_(vectors)
        if self.config.update == "ema":
            self.mean_sum.copy_(vectors)

    @torch.no_grad()
    def move_means(self) -> None:
        """Move each code towards the sum of this step's vectors assigned to it on all workers, with ema.

        Call once per step on every worker, after its last micro-batch. Never waits for the device.
        """
        if self.config.update != "ema":
            return
        counts, sums = self.step_counts, self.step_sums
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            joined = torch.cat([counts[:, None], sums], dim=1)
            dist.all_reduce(joined)
            counts, sums = joined[:, 0], joined[:, 1:]
        # Only direction matters on the sphere, so no count is kept; a code without vectors does not move.
        moved = torch.where(counts[:, None] > 0, self.mean_sum.lerp(sums, 1 - self.config.ema_decay), self.mean_sum)
        self.mean_sum.copy_(moved)
        self.codebook.data.copy_(F.normalize(moved, dim=-1))
        self.step_counts.zero_()
        self.step_sums.zero_()

    @torch.no_grad()
    def revive(self, pool: Float[Tensor, "region code_dim"], seed: int) -> Int64[Tensor, ""]:
        """Replace rarely used codes by random vectors of the pool; return their number, on the device.

        A code is rarely used if chosen less often than `revive_below` x the mean since the last revival. The least used
        come first if the pool is too small for all; vectors that are not finite are never used. Resets `usage` to 0.
        With several workers, sum `usage` over them and pass the same pool on all of them. Never waits for the device.
        """
        usage, size = self.usage.float(), len(pool)
        rank = usage.argsort(stable=True).argsort()  # rank of each code, the least used first
        order = _to_device(_pick(size, size, seed), pool.device)
        finite = pool.isfinite().all(-1)[order]
        order = order[finite.logical_not().to(torch.int8).argsort(stable=True)]
        revived = (usage < self.config.revive_below * usage.mean()) & (rank < finite.sum())
        fresh = F.normalize(pool[order[rank.clamp(max=size - 1)]].to(self.codebook), dim=-1)
        self.codebook.data.copy_(torch.where(revived[:, None], fresh, self.codebook))
        if self.config.update == "ema":
            self.mean_sum.copy_(torch.where(revived[:, None], fresh, self.mean_sum))
        self.usage.zero_()
        return revived.sum()

    @torch.no_grad()
    def _observe(self, vectors: Float[Tensor, "region code_dim"], code_ids: Int64[Tensor, "region"]) -> None:
        """Count code usage; with ema, accumulate the vectors assigned to each code until `move_means`."""
        finite = vectors.isfinite().all(-1)  # a NaN would spoil a code for good, even if its step is skipped
        vectors = vectors.masked_fill(~finite[:, None], 0)
        counts = torch.zeros_like(self.usage).index_add_(0, code_ids, finite.to(code_ids))
        self.usage += counts
        if self.config.update == "ema":
            self.step_counts += counts
            self.step_sums.index_add_(0, code_ids, vectors.to(self.step_sums))


def kmeans_rows(size: int, num_codes: int, seed: int) -> Int64[Tensor, " picked"]:
    """Sample rows of `size` vectors for k-means, at most 64 per code; on CPU, so the same for every device."""
    return _pick(size, num_codes * _KMEANS_VECTORS_PER_CODE, seed)


def kmeans(
    vectors: Float[Tensor, "region code_dim"], num_codes: int, seed: int, rounds: int = 10
) -> Float[Tensor, "num_codes code_dim"]:
    """Compute unit centres by cosine k-means on at most 64 random vectors per centre; see `kmeans_of_sample`."""
    rows = kmeans_rows(len(vectors), num_codes, seed)
    return kmeans_of_sample(vectors[rows.to(vectors.device)], num_codes, seed, rounds)


def kmeans_of_sample(
    vectors: Float[Tensor, "region code_dim"], num_codes: int, seed: int, rounds: int = 10
) -> Float[Tensor, "num_codes code_dim"]:
    """Compute unit centres by cosine k-means. The first vectors are the initial centres, so their order must be random.

    An empty centre moves to the vector farthest from its centre. With fewer vectors than centres, the centres are these
    vectors and random directions.
    """
    vectors = F.normalize(vectors.float(), dim=-1)
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
    """Find the codebook row with the largest cosine, in float32 even under autocast: near ties decide labels."""
    with torch.autocast(vectors.device.type, enabled=False):
        rows = F.normalize(codebook.float(), dim=-1).T
        parts = [(chunk.float() @ rows).argmax(-1) for chunk in vectors.split(_CHUNK)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=vectors.device)


def _pick(size: int, wanted: int, seed: int) -> Tensor:
    """Draw at most `wanted` distinct row numbers below `size`; on CPU, so the same for every device."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:wanted]


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy CPU values to a device without waiting for it."""
    if device.type == "cuda" and torch.cuda.is_available():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
