"""Figures from score matrices worked by hand."""

import numpy as np
import pytest

from evilm.errors import ConfigError
from evilm.eval.eval_clips import EvalClip
from evilm.eval.score_table import figures_table
from evilm.eval.zero_shot import (
    choice_figures,
    distinct_captions,
    draw_choices,
    group_recalls,
    masked_code_figures,
    retrieval_figures,
)


def clips_of(*captions: str) -> list[EvalClip]:
    """Clips that are held out in turn."""
    return [EvalClip(f"c{n}", caption, n % 2 == 0, 0, 0, n) for n, caption in enumerate(captions)]


def test_distinct_captions_map_clips_to_captions():
    captions, index = distinct_captions(clips_of("a", "b", "a"))
    assert (captions, index) == (["a", "b"], [0, 1, 0])


def test_retrieval_ranks_both_ways_with_ties():
    match = np.array([[5.0, 1.0], [2.0, 9.0], [3.0, 0.0]])  # (clip, distinct caption); clips 0 and 2 share caption 0
    figures, ranks = retrieval_figures(match, [0, 1, 0])
    assert ranks["t2v"].tolist() == [1, 1, 2]
    assert ranks["v2t"].tolist() == [1.5, 1, 1.5]
    assert figures["t2v_r1"].value == pytest.approx(2 / 3)
    assert figures["v2t_median_rank"].value == 1.5


def test_choices_hold_the_own_caption_and_distinct_others():
    clips = clips_of(*(["same"] * 10 + [f"caption {n}" for n in range(10)]))
    captions, index = distinct_captions(clips)
    choices = draw_choices(clips, index, 5, seed=0)
    assert choices[:, 0].tolist() == index
    assert all(len(set(row)) == 5 for row in choices.tolist())
    assert draw_choices(clips, index, 5, seed=1).tolist() != choices.tolist()
    # Clip by clip the same texts, whatever the order of the clips.
    back = clips[::-1]
    captions_back, index_back = distinct_captions(back)
    texts = [[captions_back[i] for i in row] for row in draw_choices(back, index_back, 5, seed=0)[::-1]]
    assert texts == [[captions[i] for i in row] for row in choices]


def test_too_few_captions_for_the_choice_are_rejected():
    clips = clips_of("a", "b", "a")
    with pytest.raises(ConfigError, match="num_choices = 5, but the scored clips have 2"):
        draw_choices(clips, [0, 1, 0], 5, 0)


def test_choice_accuracy_by_group():
    clips = clips_of("a", "b", "c", "d")
    match = np.eye(4)
    match[3, 0] = 2.0  # clip 3, not held out, prefers caption 0
    choices = np.array([[0, 1], [1, 0], [2, 0], [3, 0]])
    figures = choice_figures(match, choices, clips)
    assert {name: figure.value for name, figure in figures.items()} == {
        "choice_accuracy": 0.75,
        "choice_accuracy_heldout": 1.0,
        "choice_accuracy_seen": 0.5,
    }
    assert figures["choice_accuracy"].chance == 0.5
    unknown = [EvalClip(c.clip_id, c.caption, None, 0, 0, c.row) for c in clips]
    assert list(choice_figures(match, choices, unknown)) == ["choice_accuracy"]
    recalls = group_recalls(np.array([1.0, 11.0, 10.0, 12.0]), clips)
    assert (recalls["t2v_r10_heldout"].value, recalls["t2v_r10_seen"].value) == (1.0, 0.0)


def test_masked_code_accuracy_is_compared_with_both_constants():
    code_ids = np.array([[1, 2, 2], [2, 3, 1]])
    predicted = np.array([[1, 2, 2], [2, 0, 0]])
    figures = masked_code_figures(code_ids, predicted, [5, 9, 1, 0])
    assert figures["mvm_accuracy"].value == figures["mvm_accuracy_oracle"].value == pytest.approx(4 / 6)
    assert figures["mvm_accuracy"].chance == pytest.approx(2 / 6)  # always code 1, train's most frequent
    assert figures["mvm_accuracy_oracle"].chance == pytest.approx(3 / 6)  # always code 2
    # By clip the model leads code 1 by 2/3 and 0: mean 1/3, standard error 1/3.
    assert figures["mvm_accuracy"].standard_error == pytest.approx(1 / 3)
    line = figures_table(figures).splitlines()[2]
    assert line.split()[-5:] == ["66.7%", "33.3%", "33.3%", "+1.0", "2"]
