"""The best checkpoint of a run: by one metric, over the same clips."""

import math

import pytest

from evilm.config.training import ScheduleConfig
from evilm.errors import ConfigError
from evilm.train.validation import better, note_best


def test_best_step_starts_over_if_clips_or_metric_change() -> None:
    schedule = ScheduleConfig(eval_clips=8)
    first = note_best({}, {"loss": 2.0, "match_auc": 0.6}, schedule, 4, 1)
    assert (first["checkpoint"], first["value"], first["step"]) == ("step_00000004-001", 2.0, 4)
    assert note_best(first, {"loss": 3.0}, schedule, 8, 1) == {}
    assert note_best(first, {"loss": 1.0}, schedule, 8, 2)["checkpoint"] == "step_00000008-002"
    more_clips = schedule.model_copy(update={"eval_clips": 16})
    assert note_best(first, {"loss": 3.0}, more_clips, 8, 1)["value"] == 3.0
    other = schedule.model_copy(update={"keep_best": "match_auc"})
    assert note_best(first, {"loss": 3.0, "match_auc": 0.5}, other, 8, 1)["value"] == 0.5


def test_nan_is_never_the_best() -> None:
    assert better({"loss": math.nan}, "loss", {}) is None
    assert better({"loss": math.inf}, "loss", {}) is None
    assert better({"loss": 2.0}, "loss", {"value": math.nan}) == 2.0, "of a run of before"
    assert better({"loss": 2.0}, "loss", {"value": 1.0}) is None
    assert better({"auc": 2.0}, "auc", {"value": 1.0}) == 2.0


def test_unknown_metric_ends_the_training_at_the_first_evaluation() -> None:
    with pytest.raises(ConfigError, match="'nonsense' is not an evaluation metric; use one of auc, loss"):
        better({"loss": 2.0, "auc": 0.5}, "nonsense", {})
    assert better({"loss": 2.0}, "", {}) is None, "nothing is wanted"
