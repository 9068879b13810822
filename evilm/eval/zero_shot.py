"""Zero-shot figures from the match scores: retrieval both ways, multiple choice, masked codes; numpy only.

Paper: Sec. 4.4 (Table 4), with the pre-trained matching head in place of a fine-tuned one.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from evilm.errors import ConfigError
from evilm.eval.eval_clips import EvalClip
from evilm.model.metrics import Figure, choice_hits, clip_accuracy, proportion, recall_at, retrieval
from evilm.seeds import clip_rng


def distinct_captions(clips: Sequence[EvalClip]) -> tuple[list[str], list[int]]:
    """Return every caption once, and the index of each clip's."""
    index: dict[str, int] = {}
    places = [index.setdefault(clip.caption, len(index)) for clip in clips]
    return list(index), places


def retrieval_figures(
    match: Float[np.ndarray, "clip caption"], caption_of: Sequence[int]
) -> tuple[dict[str, Figure], dict[str, Float[np.ndarray, "query"]]]:
    """Compute text-to-video and video-to-text figures by name, and the ranks behind them.

    As is usual, each clip's caption is one query with one right video. Equal captions of two clips are two queries
    (and, the other way round, two items that tie).
    """
    pairs = match[:, caption_of]
    own = np.arange(len(pairs))
    to_video, video_ranks = retrieval(pairs.T, own, "caption")
    to_text, text_ranks = retrieval(pairs, own, "clip")
    figures = {f"t2v_{name}": figure for name, figure in to_video.items()}
    figures |= {f"v2t_{name}": figure for name, figure in to_text.items()}
    return figures, {"t2v": video_ranks, "v2t": text_ranks}


def draw_choices(
    clips: Sequence[EvalClip], caption_of: Sequence[int], num_choices: int, seed: int
) -> Int[np.ndarray, "clip choice"]:
    """Return for each clip its caption first, then others with another text, drawn by (seed, clip id).

    Raises:
        ConfigError: fewer distinct captions than choices.
    """
    num_captions = max(caption_of) + 1
    if num_captions < num_choices:
        raise ConfigError(
            f"num_choices = {num_choices}, but the scored clips have {num_captions} distinct captions; use "
            "a lower --num-choices, at least 2, or score more clips"
        )
    # Drawn from sorted texts: the result depends on the set of captions, not on the order that clips come in.
    first_clip: dict[int, int] = {}
    for clip, caption in enumerate(caption_of):
        first_clip.setdefault(caption, clip)
    captions = np.array(sorted(first_clip, key=lambda caption: clips[first_clip[caption]].caption))
    choices = np.empty((len(clips), num_choices), dtype=np.int64)
    for row, clip, own in zip(choices, clips, caption_of, strict=True):
        others = captions[captions != own]
        row[0] = own
        row[1:] = clip_rng("choices", seed, 0, clip.clip_id).choice(others, num_choices - 1, replace=False)
    return choices


def choice_figures(
    match: Float[np.ndarray, "clip caption"], choices: Int[np.ndarray, "clip choice"], clips: Sequence[EvalClip]
) -> dict[str, Figure]:
    """Compute multiple-choice accuracy of all clips, and of held-out combinations and the others if these are known."""
    hits = choice_hits(np.take_along_axis(match, choices, axis=1))
    chance = 1 / choices.shape[1]
    groups = {"": np.ones(len(clips), dtype=bool)} | groups_of(clips)
    return {f"choice_accuracy{name}": proportion(hits[members], chance) for name, members in groups.items()}


def group_recalls(t2v_ranks: Float[np.ndarray, "query"], clips: Sequence[EvalClip]) -> dict[str, Figure]:
    """Compute text-to-video R@10 of held-out combinations and of the others, each among all videos."""
    return {f"t2v_r10{name}": recall_at(t2v_ranks[who], 10, len(clips)) for name, who in groups_of(clips).items()}


def groups_of(clips: Sequence[EvalClip]) -> dict[str, Bool[np.ndarray, "clip"]]:
    """Return the members of `_heldout` and `_seen`; nothing if the manifest does not tell them apart."""
    heldout = np.array([clip.heldout is True for clip in clips])
    seen = np.array([clip.heldout is False for clip in clips])
    return {"_heldout": heldout, "_seen": seen} if heldout.any() and seen.any() else {}


def masked_code_figures(
    code_ids: Int[np.ndarray, "clip masked"],
    predicted: Int[np.ndarray, "clip masked"],
    train_histogram: Sequence[int],
) -> dict[str, Figure]:
    """Compute the accuracy on masked regions against always guessing one code.

    `mvm_accuracy` is held against the most frequent code of the train split, `mvm_accuracy_oracle` against the best
    constant there is: the most frequent code of these very regions, which nobody could know.
    """
    hits = predicted == code_ids
    guess = int(np.argmax(train_histogram)) if len(train_histogram) else 0
    best = int(np.argmax(np.bincount(code_ids.ravel())))
    return {
        "mvm_accuracy": clip_accuracy(hits, code_ids == guess),
        "mvm_accuracy_oracle": clip_accuracy(hits, code_ids == best),
    }
