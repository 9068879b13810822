"""Which settings go on from a rung, and that nothing but their scores decides it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from evilm.sweep.halving import halve, in_random_order, rung_steps
from evilm.sweep.sweep_results import Tried, rank
from evilm.sweep.trial_folder import TrialOutcome, make_trials

SETTINGS, EPOCHS = "abcd", 20


@pytest.mark.parametrize(
    ("steps_per_epoch", "last_step", "grace", "reduction", "wanted"),
    [
        (16, 320, 1, 3, (16, 48, 144, 320)),
        (16, 32, 0.5, 2, (8, 16, 32)),
        (7, 140, 0.5, 3, (4, 11, 32, 95, 140)),  # 3.5, 10.5, 31.5 and 94.5 are rounded up
        (10, 100, 0.1, 3, (1, 3, 9, 27, 81, 100)),  # 0.1 * 3 is above 0.3
        (16, 40, 1, 3, (16, 40)),  # cut short by max_steps
        (16, 16, 1, 3, (16,)),
    ],
)
def test_rungs_are_at_epochs_rounded_up_and_at_the_end(
    steps_per_epoch: int, last_step: int, grace: float, reduction: float, wanted: tuple[int, ...]
) -> None:
    assert rung_steps(steps_per_epoch, last_step, grace, reduction) == wanted


def _run(table: dict[str, list[list[float]]], reduction: float) -> tuple[list[str], list[str]]:
    """Halve settings with these scores at each rung; the settings run to each rung, and those of the end."""
    rounds: list[str] = []

    def advance(left: Sequence[str], rung: int) -> list[list[float]]:
        rounds.append(f"{rung}:{''.join(left)}")
        return [table[name][rung] for name in left]

    return rounds, halve(list(table), len(next(iter(table.values()))), reduction, advance)


def test_mean_over_seeds_decides_not_the_best_seed() -> None:
    rounds, left = _run({"a": [[9, 0], [1, 1]], "b": [[5, 5], [1, 1]], "c": [[6, 2], [9, 9]]}, reduction=3)
    assert (rounds, left) == (["0:abc", "1:b"], ["b"])


def test_each_rung_keeps_its_share_rounded_up() -> None:
    names = "abcdefg"
    table = {name: [[float(at)]] * 4 for at, name in enumerate(names)}
    assert _run(table, 3)[0] == ["0:abcdefg", "1:efg", "3:g"]
    assert _run(table, 2)[0] == ["0:abcdefg", "1:defg", "2:fg", "3:g"]
    assert _run(table, 1.5)[0] == ["0:abcdefg", "1:cdefg", "2:defg", "3:efg"]


def test_setting_that_cannot_be_dropped_runs_without_a_pause() -> None:
    assert _run({"a": [[1], [2], [3]]}, 3)[0] == ["2:a"]
    assert _run({"a": [[1], [2], [3]], "b": [[1], [2], [3]]}, 1.5)[0] == ["2:ab"]


def test_setting_with_a_failed_seed_ranks_last() -> None:
    table = {"a": [[9.0], [9]], "b": [[], []], "c": [[1, 1], [1, 1]], "d": [[2, 0], [2, 2]]}
    assert _run(table, 2)[0] == ["0:abcd", "1:cd"]
    assert _run({"a": [[], []], "b": [[9.0], [9]]}, 2)[1] == ["b"]


def _winner(sweep: int, reduction: float, seeds: int, noise: float) -> str:
    """Simulate a sweep of equal settings, and return the one that its ranking names the best.

    All scores rise to the same mean, with noise of the seed and half as much of each evaluation.
    """
    rng = np.random.default_rng(sweep)
    steps = rung_steps(1, EPOCHS, 1, reduction)
    rise = 0.5 + 0.2 * (1 - np.exp(-np.array(steps) / 5))
    of_seeds = rng.normal(0, noise, (len(SETTINGS), seeds, 1))
    scores = rise + of_seeds + rng.normal(0, noise / 2, (len(SETTINGS), seeds, len(steps)))
    reached: dict[str, int] = {}

    def advance(left: Sequence[str], rung: int) -> list[list[float]]:
        reached.update(dict.fromkeys(left, rung))
        return [list(scores[SETTINGS.index(name), :, rung]) for name in left]

    ended = halve(in_random_order(SETTINGS, sweep, str), len(steps), reduction, advance)
    tried = []
    for number, name in enumerate(SETTINGS):
        for trial in make_trials(number, {"name": name}, seeds, "trials"):
            rungs = range(reached[name] + 1)
            points = [(steps[rung], {"match_auc": float(scores[number, trial.repeat, rung])}) for rung in rungs]
            tried.append(Tried(trial, TrialOutcome("done" if name in ended else "stopped", points), 1))
    return str(rank(tried, "match_auc")[0].values["name"])


@pytest.mark.parametrize(
    ("reduction", "seeds", "noise"),
    [(3, 2, 0.02), (3, 2, 0.0), (2, 2, 0.02), (1.5, 1, 0.02)],
    ids=["defaults", "exact ties", "reduction 2", "two finalists, one seed"],
)
def test_each_of_four_equal_settings_wins_a_quarter_of_2000_sweeps(reduction: float, seeds: int, noise: float) -> None:
    wins = Counter(_winner(sweep, reduction, seeds, noise) for sweep in range(2000))
    shown = ", ".join(f"{name} {wins[name] / 20:.1f} %" for name in SETTINGS)
    print(f"\nreduction {reduction:g}, {seeds} seed(s), noise {noise:g}: won {shown}")
    assert all(440 <= wins[name] <= 560 for name in SETTINGS)
