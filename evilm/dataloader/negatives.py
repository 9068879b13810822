"""Choose the negative caption of each clip for video-text matching: any other of the step, or the most similar one.

Hard negatives are chosen by the captions' words alone. The model's own matching scores would differ in their last
digits with the number of workers (other batch shapes round otherwise), and every worker would have to score its clips
with all captions of the global step; E-ViLM has no separate, cheap similarity of a clip and a caption.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64

from evilm.seeds import clip_rng, derangement
from evilm.text.vocab import split_words

Negatives = Literal["random", "hard"]
_CANDIDATES = 32  # of each clip
_BLOCK_CLIPS = 256  # compared with each other; what a worker computes does not grow with the step, so with the workers


def hard_negatives(
    seed: int,
    epoch: int,
    clip_ids: Sequence[str],
    captions: Sequence[str],
    all_captions: Sequence[Sequence[str]],
    mine: Sequence[int],
) -> list[int | None]:
    """Find for some clips of a global step the index of a clip whose caption is similar, but says another thing.

    A step of more than 256 clips is cut into equal parts of at most 256, in each of which captions are compared.
    They are compared by the words that two share, rare ones first: a word counts floor(log2(captions / captions with
    it)), so one that most captions have counts nothing. A caption is no negative where all its words that count stand
    in the clip's own caption: it may well be true of the clip. Each caption is used once, as far as that is possible,
    lest it can be told from a caption alone that it seldom matches. Ties and leftovers follow the seeded random
    derangement.

    A function of the clips alone, in whole numbers, so it does not depend on the number of workers.

    Args:
        mine: indices of the clips to choose for.
        clip_ids, captions, all_captions: as for `derangement`.

    Returns:
        For each of `mine`; None where every caption of its part is one of the clip's own.
    """
    count = len(clip_ids)
    parts = -(-count // _BLOCK_CLIPS)
    bounds = [count * number // parts for number in range(parts + 1)] if parts else []
    partners: dict[int, int | None] = {}
    for start, stop in itertools.pairwise(bounds):
        if any(start <= clip < stop for clip in mine):
            part = slice(start, stop)
            chosen = _choose(seed, epoch, clip_ids[part], captions[part], all_captions[part])
            partners |= {start + clip: None if other is None else start + other for clip, other in enumerate(chosen)}
    return [partners[clip] for clip in mine]


def _choose(
    seed: int, epoch: int, clip_ids: Sequence[str], captions: Sequence[str], all_captions: Sequence[Sequence[str]]
) -> list[int | None]:
    """Choose for every clip among all of them."""
    fallback = derangement(seed, epoch, clip_ids, captions, all_captions, range(len(clip_ids)))
    likeness, says_more = _compare(captions)
    allowed = says_more & ~_own(captions, all_captions)
    chosen: list[int | None] = [None] * len(captions)
    taken = np.zeros(len(captions), dtype=bool)
    for clip, other in _best_first(seed, epoch, clip_ids, likeness, allowed):
        if chosen[clip] is None and not taken[other]:
            chosen[clip], taken[other] = other, True
    for clip, other in enumerate(chosen):
        if other is None:  # its candidates are all taken
            fair = fallback[clip]
            chosen[clip] = next((int(c) for c in np.flatnonzero(allowed[clip] & ~taken)), fair)
            if chosen[clip] is not None:
                taken[chosen[clip]] = True
    return chosen


_Choice = Callable[[int, int, Sequence[str], Sequence[str], Sequence[Sequence[str]], Sequence[int]], list[int | None]]
NEGATIVES: dict[Negatives, _Choice] = {
    "random": derangement,
    "hard": hard_negatives,
}
"""By the value of `objectives.negatives`: from seed, epoch, clip ids, drawn and all captions of a step, and some clips,
to their partners."""


def _compare(captions: Sequence[str]) -> tuple[Int64[np.ndarray, "clip other"], np.ndarray]:
    """Return how alike each two captions are, and whether the second has a word that counts and the first lacks."""
    words = [set(split_words(caption)) for caption in captions]
    index = {word: column for column, word in enumerate(sorted(set().union(*words)))}
    # float32 for the sake of fast products; whole numbers far below 2**24 are exact in it
    has = np.zeros((len(captions), len(index)), dtype=np.float32)
    for row, own in zip(has, words, strict=True):
        row[[index[word] for word in own]] = 1
    weight = np.array([(len(captions) // max(1, int(count))).bit_length() - 1 for count in has.sum(0)])
    counted = has * weight
    shared = counted @ has.T
    total = counted.sum(1)
    lacking = total[None, :] - shared  # of the first caption, what the second says
    return (4 * shared - total[:, None] - total[None, :]).astype(np.int64), lacking > 0


def _own(captions: Sequence[str], all_captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Return which of the drawn captions are among a clip's own: a row per clip."""
    clips_with: dict[str, list[int]] = {}
    for clip, caption in enumerate(captions):
        clips_with.setdefault(caption, []).append(clip)
    own = np.zeros((len(captions), len(captions)), dtype=bool)
    for clip, texts in enumerate(all_captions):
        for text in texts:
            own[clip, clips_with.get(text, [])] = True
    return own


def _best_first(
    seed: int, epoch: int, clip_ids: Sequence[str], likeness: Int64[np.ndarray, "clip other"], allowed: np.ndarray
) -> list[tuple[int, int]]:
    """Return the allowed pairs of clip and caption, most alike first, equals in a seeded random order."""
    count = len(clip_ids)
    place = clip_rng("hard negatives", seed, epoch, "\0".join(clip_ids)).permutation(count)
    tie = (place[None, :] - place[:, None]) % max(1, count)  # who comes next in the cycle, seen from each clip
    rank = np.where(allowed, -likeness * count + tie, np.iinfo(np.int64).max)
    some = min(_CANDIDATES, count)
    candidates = np.argpartition(rank, some - 1, axis=1)[:, :some]  # ranks of a row differ, so the set is certain
    clips = np.repeat(np.arange(count), candidates.shape[1])
    others = candidates.ravel()
    ranks = rank[clips, others]
    order = np.lexsort((place[clips], ranks))
    return [(int(clips[k]), int(others[k])) for k in order if allowed[clips[k], others[k]]]
