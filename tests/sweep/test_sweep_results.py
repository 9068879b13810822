"""The end of a sweep: ranking, files, figure, preset; and what it reads from the folders of its trials."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from evilm.config.command_line import parse
from evilm.config.presets import defaults
from evilm.config.stages import Pretrain
from evilm.errors import ConfigError
from evilm.sweep.run_sweep import _require_score, trial_config
from evilm.sweep.search import SearchJob, make_job, up_to
from evilm.sweep.shared_inputs import SharedPlaces
from evilm.sweep.sweep_figure import draw_sweep
from evilm.sweep.sweep_results import Tried, best_preset, rank, results_csv, results_json, results_table, short_names
from evilm.sweep.trial_folder import Trial, TrialOutcome, make_trials, read_outcome
from evilm.tasks.inputs import Inputs

SCORES = {0.2: [(0.7, "done"), (0.8, "done")], 0.4: [(0.9, "done"), (0.6, "stopped")], 0.6: [(0.74, "done")] * 2}


def _tried(**more: object) -> list[Tried]:
    found = []
    for number, (ratio, ends) in enumerate(SCORES.items()):
        trials = make_trials(number, {"objectives.mask_ratio": ratio} | more, 2, "somewhere")
        for trial, (score, state) in zip(trials, ends, strict=True):
            points = [(8, {"match_auc": 0.5, "loss": 9.0}), (16, {"match_auc": score, "loss": 8.0})]
            found.append(Tried(trial, TrialOutcome(state, points, {"seconds": 9.5} if state == "done" else {}), 16))  # type: ignore[arg-type]
    return found


def test_settings_are_ranked_by_finished_seeds_then_mean() -> None:
    ranked = rank(_tried(), "match_auc")
    assert [setting.values["objectives.mask_ratio"] for setting in ranked] == [0.2, 0.6, 0.4], "0.9 was one lucky seed"
    assert [round(setting.mean or 0, 9) for setting in ranked] == [0.75, 0.74, 0.9]
    assert ranked[0].spread == pytest.approx(0.0707107)
    assert ranked[2].early_scores == [0.6]
    assert rank(_tried(), "loss")[0].mean == 8.0
    ends = {1: [(8, 0.9)], 2: [(8, 0.6), (16, 0.5)], 3: [(8, 0.7), (16, 0.6)]}
    stopped = [
        Tried(
            make_trials(number, {"optim.lr": number}, 1, "x")[0],
            TrialOutcome("stopped", [(s, {"a": v}) for s, v in at]),
            8,
        )
        for number, at in ends.items()
    ]
    assert [setting.values["optim.lr"] for setting in rank(stopped, "a")] == [3, 2, 1], "later rungs first"
    lines = results_table(ranked, "match_auc").splitlines()
    assert lines[0].split() == ["mask_ratio", "match_auc", "±", "seeds", "trials", "stopped", "at"]
    assert lines[2].split() == ["0.2", "0.7500", "0.0707", "2", "done"]
    assert lines[4].split() == ["0.4", "0.9000", "1", "done,", "1", "stopped", "0.600"]


def test_nonfinite_score_counts_as_none() -> None:
    for index, item in enumerate(tried := _tried()):
        if item.trial.number == 0:
            points = [*item.outcome.points, (24, {"match_auc": float("nan"), "loss": float("inf")})]
            tried[index] = Tried(item.trial, TrialOutcome(item.outcome.state, points), 16)
    for score in ("match_auc", "loss"):
        ranked = rank(tried, score)
        assert ranked[-1].values == {"objectives.mask_ratio": 0.2}
        assert ranked[-1].mean is None
    with pytest.raises(ConfigError, match=r"no trial ended with a finite match_auc \(2 done\)"):
        _require_score(ranked[-1:], parse("masking_ratio", ["--preset", "tiny"]))


def test_error_without_a_best_setting_counts_all_trials() -> None:
    stopped, failed = make_trials(0, {"optim.lr": 1e-3}, 1, "x"), make_trials(1, {"optim.lr": 9.0}, 1, "x")
    outcomes = [TrialOutcome("stopped", [(8, {"match_auc": 0.5})]), TrialOutcome("failed", error="loss is not finite")]
    ranked = rank([Tried(t, o, 8) for t, o in zip([*stopped, *failed], outcomes, strict=True)], "match_auc")
    with pytest.raises(ConfigError, match=r"\(1 stopped, 1 failed\); the first failed with: loss is not finite"):
        _require_score(ranked, parse("masking_ratio", ["--preset", "tiny"]))


def test_result_files_hold_every_trial_and_evaluation() -> None:
    tried = _tried()
    rows = list(csv.DictReader(results_csv(tried).decode().splitlines()))
    assert [row["state"] for row in rows] == ["done", "done", "done", "stopped", "done", "done"]
    assert rows[3] | {"trial": ""} == {
        "trial": "", "objectives.mask_ratio": "0.4", "seed": "1", "state": "stopped", "epochs": "1",
        "loss": "8.0", "match_auc": "0.6", "error": "",
    }  # fmt: skip
    settings = results_json(rank(tried, "match_auc"), "match_auc")["settings"]
    assert settings[0]["trials"][1]["evaluations"][0] == {"step": 8, "epochs": 0.5, "match_auc": 0.5, "loss": 9.0}


@pytest.mark.parametrize("more", [{}, {"optim.lr": 1e-3, "objectives.mask_shape": "tube"}])
def test_figure_is_drawn_for_one_or_several_settings(more: dict) -> None:
    assert draw_sweep(rank(_tried(**more), "match_auc"), "match_auc").startswith(b"\x89PNG")
    assert short_names({"a.lr": 1, "b.lr": 2, "c.d": 3, "lr": 4}) == {
        "a.lr": "a.lr",
        "b.lr": "b.lr",
        "c.d": "d",
        "lr": "lr",
    }


def test_best_preset_repeats_the_trial_in_pretrain(tmp_path: Path) -> None:
    config = parse("codebook_size", ["--preset", "tiny", "--arch.dropout", "0.2"])
    values = {"train_tokenizer.arch.codebook.num_codes": 64, "optim.lr": 2e-3}
    (trial,) = make_trials(0, values, 1, str(tmp_path))
    ground = SharedPlaces(Inputs("f", "c", "v", "t"), 512, 96)
    settings = trial_config(config, trial, ground, "sqlite:///x.db", "parent")
    tracking = settings.tracking
    assert (tracking.uri, tracking.parent, tracking.log_model) == ("sqlite:///x.db", "parent", False)
    (best,) = rank([Tried(trial, TrialOutcome("done", [(48, {"match_auc": 0.6})]), 16)], "match_auc")
    preset = tmp_path / "best.yaml"
    preset.write_text(best_preset(settings, "codebook_size", best, {"frames": "f"}))
    again = defaults("pretrain", str(preset))
    assert isinstance(again, Pretrain)
    assert again.identity == settings.identity
    assert again.train_tokenizer.identity == settings.train_tokenizer.identity
    assert not {"out", "root", "frames", "tracking", "preset"} & yaml.safe_load(preset.read_text())["pretrain"].keys()
    assert (again.optim.lr, again.arch.dropout, again.train_tokenizer.arch.codebook.num_codes) == (2e-3, 0.2, 64)


def test_trials_differ_by_values_and_seed_only(tmp_path: Path) -> None:
    config = parse("masking_ratio", ["--preset", "tiny", "--schedule.seed", "5"])
    ground = SharedPlaces(Inputs("f", "c", "v", "t"), 100, 96)
    first, second = (
        trial_config(config, trial, ground)
        for trial in make_trials(0, {"objectives.mask_ratio": 0.7}, 2, str(tmp_path))
    )
    assert (first.schedule.seed, second.schedule.seed) == (5, 6)
    assert first.objectives.mask_ratio == 0.7
    same = {"objectives.mask_ratio": config.objectives.mask_ratio, "schedule.seed": 5}
    assert first.override(same).identity == config.base.identity
    assert ground.steps_per_epoch(first) == 4
    assert ground.steps_per_epoch(first.override({"schedule.tail": "drop"})) == 3


def _job(tmp_path: Path, *flags: str) -> SearchJob:
    """A trial of 4 epochs of 4 steps, with rungs at steps 4 and 12, and 16."""
    config = parse("masking_ratio", ["--preset", "tiny", "--schedule.epochs", "4", "--grace-epochs", "1", *flags])
    config = config.override({"reduction": 3, "schedule.batch_clips": 32})
    (trial,) = make_trials(0, {"objectives.mask_ratio": 0.4}, 1, str(tmp_path))
    ground = SharedPlaces(Inputs("f", "c", "v", "t"), 128, 96)
    settings = trial_config(config, trial, ground)
    return make_job(config, trial, settings, ground.steps_per_epoch(settings))


def _write(job: SearchJob, scores: dict[int, float], **files: dict) -> None:
    """Make the folder of a trial with these scores by step."""
    folder = Path(job.trial.out)
    folder.mkdir(exist_ok=True)
    points = [{"step": step, "metrics": {"val/match_auc": score}} for step, score in scores.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_trial_has_reached_a_rung_once_its_score_is_stored(tmp_path: Path) -> None:
    job = _job(tmp_path)
    assert job.rungs == (4, 12, 16)
    assert not job.has_reached(0)
    _write(job, {2: 0.5, 4: 0.6}, summary={"steps": 4})
    assert [job.has_reached(rung) for rung in range(3)] == [True, False, False]
    assert (job.outcome.state, job.score("match_auc", 0)) == ("unfinished", 0.6), "the summary is a rung's"
    _write(job, {4: 0.6, 8: 0.7, 12: 0.8, 16: 0.9})
    assert [job.has_reached(rung) for rung in range(3)] == [True, True, False], "the model is still missing"
    assert [job.score("match_auc", rung) for rung in range(3)] == [0.6, 0.8, 0.9]
    _write(job, {8: 0.7, 16: 0.9}, summary={"steps": 16})
    assert job.outcome.state == "done"
    assert [job.score("match_auc", rung) for rung in range(4)] == [0.7, 0.7, 0.9, 0.9], "other rungs than before"


def test_failed_trial_keeps_its_earlier_scores(tmp_path: Path) -> None:
    job = _job(tmp_path)
    _write(job, {4: 0.6, 8: 0.7}, failed={"error": "loss is not finite"})
    assert all(job.has_reached(rung) for rung in range(3))
    assert [job.score("match_auc", rung) for rung in range(3)] == [0.6, None, None]


def test_trial_stops_at_its_rung_and_evaluates_every_rung(tmp_path: Path) -> None:
    job = _job(tmp_path, "--grace-epochs", "0.6")
    assert job.rungs == (3, 8, 16), "of 2.4 and 7.2 steps"
    settings = up_to(job, 1)
    assert (settings.schedule.max_steps, settings.schedule.eval_at_steps) == (8, (3, 8, 16))
    assert settings.identity == job.settings.identity, "so that the next rung goes on from here"


def test_without_halving_the_end_is_the_only_rung(tmp_path: Path) -> None:
    assert _job(tmp_path, "--stopping", "none").rungs == (16,)
    assert _job(tmp_path, "--schedule.max-steps", "10").rungs == (4, 10)


def test_outcome_of_a_trial_is_read_from_its_folder(tmp_path: Path) -> None:
    trial = Trial(0, 0, {}, str(tmp_path / "t"))
    assert read_outcome(trial.out, 8).state == "unfinished"
    (tmp_path / "t").mkdir()
    points = [
        {"step": 2, "metrics": {"train/loss": 3}},
        {"step": 4, "metrics": {"val/loss": 2.5, "val/match_auc": 0.5}},
    ]
    text = "".join(json.dumps(point) + "\n" for point in points)
    (tmp_path / "t" / "metrics.jsonl").write_text(text + '{"step": 6, "metr')
    outcome = read_outcome(trial.out, 8)
    assert (outcome.state, outcome.points) == ("unfinished", [(4, {"loss": 2.5, "match_auc": 0.5})])
    (tmp_path / "t" / "stopped.json").write_text("{}")
    assert read_outcome(trial.out, 8).state == "stopped"
    (tmp_path / "t" / "summary.json").write_text('{"steps": 8}')
    assert read_outcome(trial.out, 8).state == "done", "what has come to its end counts"
    assert read_outcome(trial.out, 9).state == "stopped", "at a rung"
    assert outcome.last("match_auc") == 0.5
    assert outcome.last("t2v_r1") is None
