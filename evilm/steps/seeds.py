"""Randomness that belongs to a clip, not to a worker: drawn from (seed, epoch, clip id)."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64


def clip_rng(purpose: str, seed: int, epoch: int, clip_id: str) -> np.random.Generator:
    """Return the generator of one clip in one epoch for one purpose (view, crop)."""
    return np.random.Generator(np.random.PCG64(_key(purpose, seed, epoch, clip_id)))


def clip_keys(purpose: str, seed: int, epoch: int, clip_ids: Sequence[str]) -> UInt64[np.ndarray, " clip"]:
    """Return a key for each clip in one epoch, for draws that are made for many clips together (words, regions)."""
    return np.array([_key(purpose, seed, epoch, clip_id) for clip_id in clip_ids], dtype=np.uint64)


def _key(purpose: str, seed: int, epoch: int, clip_id: str) -> int:
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{epoch}\0{clip_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def derangement(seed: int, epoch: int, clip_ids: list[str], captions: list[str]) -> list[int | None]:
    """For each clip of a global step the index of another clip whose caption does not match it.

    A function of the clips alone, so it does not depend on the number of workers. Equal captions are no negatives;
    where every caption of the step is equal there is none (None).
    """
    cycle = clip_rng("negatives", seed, epoch, "\0".join(clip_ids)).permutation(len(clip_ids)).tolist()
    place = {clip: index for index, clip in enumerate(cycle)}
    partners: list[int | None] = []
    for clip, caption in enumerate(captions):
        others = (cycle[(place[clip] + shift) % len(cycle)] for shift in range(1, len(cycle)))
        partners.append(next((other for other in others if captions[other] != caption), None))
    return partners
