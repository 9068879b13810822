"""Champion and challenger: the rule, and the aliases that benchmarks set in a real registry."""

import json
from pathlib import Path
from typing import Any

import pytest

from evilm.config.stages import Benchmark
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.tracking.mlflow_run import TrackedRun, describe_run, ensure_run
from evilm.tracking.registry import REGISTERED_NAME, decide, judge, score_tags


def _figure(value: float, error: float = 0.02, sigmas: float = 9) -> dict[str, float]:
    return {"value": value, "chance": 0.04, "standard_error": error, "sigmas_above_chance": sigmas}


@pytest.mark.parametrize(
    ("name", "value", "sigmas", "champion", "alias", "reason"),
    [
        ("t2v_r10", 0.4, 9, None, "champion", "there was no champion"),
        ("t2v_r10", 0.05, 1.4, None, "", "only 1.4 standard errors above chance"),
        ("t2v_r10", 0.45, 9, 0.40, "champion", "ahead by more than the standard error of the difference, 0.028"),
        ("t2v_r10", 0.42, 9, 0.40, "challenger", "not ahead by more than"),
        ("t2v_r10", 0.30, 9, 0.40, "challenger", "not ahead by more than"),
        ("t2v_median_rank", 10, 9, 12.0, "champion", "ahead"),  # low is good
        ("t2v_median_rank", 14, 9, 12.0, "challenger", "not ahead"),
    ],
)
def test_decide_promotes_significantly_better_models(
    name: str, value: float, sigmas: float, champion: float | None, alias: str, reason: str
) -> None:
    kept = None if champion is None else score_tags({name: _figure(champion)}, "these clips")
    verdict = decide(name, _figure(value, sigmas=sigmas), "these clips", kept)
    assert verdict.alias == alias
    assert reason in verdict.reason


def test_decide_compares_only_scores_of_the_same_kind_and_clips() -> None:
    kept = score_tags({"t2v_r10": _figure(0.1)}, "other clips")
    assert decide("t2v_r10", _figure(0.9), "these clips", kept).alias == "challenger"
    assert "benchmark it on them" in decide("choice_accuracy", _figure(0.9), "other clips", kept).reason


class Bench:
    """A store with registered versions, and benchmarks of them with figures of our choice."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        self.folder, self.uri = folder, f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(tracking_uri=self.uri)
        self.client.create_registered_model(REGISTERED_NAME)

    def model(self, name: str) -> str:
        """A model's output folder with a registered version, as `publish` leaves it."""
        version = self.client.create_model_version(REGISTERED_NAME, str(self.folder / name))
        place = str(self.folder / name)
        known = {"uri": self.uri, "run_id": "-", "model": f"models:/{REGISTERED_NAME}/{version.version}"}
        storage.write_json(storage.join(place, "mlflow.json"), known)
        return place

    def score(self, model: str, value: float, split: str = "test", **settings: Any) -> TrackedRun:
        """A finished benchmark."""
        name = Path(model).name
        out = str(self.folder / f"scores-{name}-{split}-{value}")
        config = Benchmark(model=model, split=split, out=out).override(settings)
        inputs = {"model": name, "frames": "f"}
        with Output(config, out, inputs):
            pass
        run = describe_run(config, "benchmark", out, inputs)
        assert run
        ensure_run(run)
        summary = {"out": out, "inputs": inputs, "model": model, "split": split, "num_clips": 240, "num_choices": 5}
        judge(run, config, summary | {"num_captions": 240, "metrics": {"t2v_r10": _figure(value)}})
        return run

    def alias(self, alias: str) -> str:
        """The version that has it, '' for none."""
        return str(self.client.get_registered_model(REGISTERED_NAME).aliases.get(alias, ""))


@pytest.fixture
def bench(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Bench(tmp_path)


def test_benchmarks_move_champion_and_challenger(bench: Bench) -> None:
    first, second, third = (bench.model(name) for name in "abc")
    run = bench.score(first, 0.40)
    assert bench.alias("champion") == "1"
    bench.score(second, 0.41)
    assert (bench.alias("champion"), bench.alias("challenger")) == ("1", "2")
    bench.score(third, 0.60)
    assert (bench.alias("champion"), bench.alias("challenger")) == ("3", "2")
    bench.score(second, 0.70)  # trained on, say, and scored again: from challenger to champion
    assert (bench.alias("champion"), bench.alias("challenger")) == ("2", "")
    tags = bench.client.get_model_version(REGISTERED_NAME, "2").tags
    assert tags["evilm.score.t2v_r10"] == "0.700000 ± 0.020000"
    assert "against the champion's 0.6" in tags["evilm.verdict"]
    described = bench.client.get_model_version(REGISTERED_NAME, "2").description
    assert "| t2v_r10 | 70.0% (chance 4.0%, 9.0 standard errors) |" in described
    run_id = json.loads((Path(run.out) / "mlflow.json").read_text())["run_id"]
    assert bench.client.get_run(run_id).data.tags["evilm.verdict"].startswith("version 1 champion")
    assert "becomes champion" in bench.client.get_registered_model(REGISTERED_NAME).description


def test_alias_set_by_hand_is_kept_until_a_new_result(bench: Bench) -> None:
    first, second = bench.model("a"), bench.model("b")
    bench.score(first, 0.40)
    bench.score(second, 0.41)
    bench.client.set_registered_model_alias(REGISTERED_NAME, "champion", "2")
    bench.score(first, 0.40)  # the same result again: judged before, nothing moves
    assert bench.alias("champion") == "2"


def test_other_clips_or_no_promotion_leave_the_champion(bench: Bench) -> None:
    first, second = bench.model("a"), bench.model("b")
    bench.score(first, 0.40)
    bench.score(second, 0.90, split="val")
    bench.score(second, 0.80, promote_by="")
    assert (bench.alias("champion"), bench.alias("challenger")) == ("1", "2")


def test_unregistered_model_is_scored_without_error(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.score(str(bench.folder / "unregistered"), 0.4)
    assert bench.alias("champion") == ""
    assert "could not judge" not in caplog.text
