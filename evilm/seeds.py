"""Random numbers that depend on names and not on a worker: equal in every process and in any order.

Training uses (seed, epoch, clip id), the frames of a shard (seed, clip id), and the embedded corpus other names.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64


def hash64(data: bytes) -> int:
    """Return a hash of 64 bits, evenly spread and the same everywhere."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def clip_rng(purpose: str, seed: int, epoch: int, clip_id: str) -> np.random.Generator:
    """Return the random generator of one clip in one epoch for one purpose (view, crop)."""
    return np.random.Generator(np.random.PCG64(_key(purpose, seed, epoch, clip_id)))


def sampling_rng(seed: int, clip_id: str) -> np.random.Generator:
    """Return the random generator of the frame times of a clip when it is sharded."""
    digest = hashlib.blake2b(f"{seed}:{clip_id}".encode(errors="surrogatepass"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def named_rng(*parts: object) -> np.random.Generator:
    """Return the random generator named by `parts`."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def clip_keys(purpose: str, seed: int, epoch: int, clip_ids: Sequence[str]) -> UInt64[np.ndarray, " clip"]:
    """Return a key per clip in one epoch, for draws of many clips at once (words, regions)."""
    return np.array([_key(purpose, seed, epoch, clip_id) for clip_id in clip_ids], dtype=np.uint64)


def _key(purpose: str, seed: int, epoch: int, clip_id: str) -> int:
    return hash64(f"{purpose}\0{seed}\0{epoch}\0{clip_id}".encode())


def draw_captions(seed: int, epoch: int, clip_ids: Sequence[str], captions: Sequence[Sequence[str]]) -> list[str]:
    """Draw one of each clip's captions, by (seed, epoch, clip id)."""
    return [
        own[0] if len(own) == 1 else own[_key("caption", seed, epoch, clip_id) % len(own)]
        for clip_id, own in zip(clip_ids, captions, strict=True)
    ]


def derangement(
    seed: int,
    epoch: int,
    clip_ids: Sequence[str],
    captions: Sequence[str],
    all_captions: Sequence[Sequence[str]],
    mine: Sequence[int],
) -> list[int | None]:
    """Find for some clips of a global step another clip whose caption does not match them.

    The result depends only on the clips, not on the number of workers.

    Args:
        clip_ids: the step's clips.
        captions: the caption drawn for each clip.
        all_captions: all captions of each clip; none of them is a negative for it.
        mine: indices of the clips to find one for.

    Returns:
        For each of `mine`, the index of the other clip; None if the step has no such caption.
    """
    cycle = clip_rng("negatives", seed, epoch, "\0".join(clip_ids)).permutation(len(clip_ids))
    place = np.argsort(cycle)
    partners: list[int | None] = []
    for clip in mine:
        own = all_captions[clip]
        others = (int(cycle[(place[clip] + shift) % len(cycle)]) for shift in range(1, len(cycle)))
        partners.append(next((other for other in others if captions[other] not in own), None))
    return partners
