"""Randomness that belongs to a clip, not to a worker: drawn from (seed, epoch, clip id)."""

import hashlib

import numpy as np


def clip_rng(purpose: str, seed: int, epoch: int, clip_id: str) -> np.random.Generator:
    """The generator of one clip in one epoch for one purpose (words, regions)."""
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{epoch}\0{clip_id}".encode(), digest_size=8).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


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
