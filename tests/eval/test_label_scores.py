"""Chance of a multiple choice: options that are often right in train are no achievement."""

import pyarrow as pa

from evilm.eval.label_scores import guess_options


def choices(*rows: tuple[list[str], str]) -> pa.Table:
    return pa.table({"options": [options for options, _ in rows], "answer": [answer for _, answer in rows]})


def test_option_that_is_most_often_right_in_train_is_guessed() -> None:
    train = choices((["same", "dark"], "same"), (["dark", "same"], "same"), (["dark", "blink"], "dark"))
    scored = choices((["blink", "same"], "same"), (["dark", "blink"], "dark"), (["dark", "same"], "dark"))
    assert guess_options(scored, train).tolist() == [1, 0, 1]


def test_nothing_is_guessed_without_a_train_split() -> None:
    assert guess_options(choices((["a", "b"], "b")), None).tolist() == [-1]
