"""Fine-tuning on items: checkpoints, resume, early end, what is published, and settings that are rejected."""

import json
from pathlib import Path
from typing import Any

import pytest

import evilm
from evilm.errors import ConfigError, UsageError
from evilm.items.seen_clips import clip_hashes, is_seen, read_seen
from evilm.model.task_model import TaskModel
from evilm.shards import FrameManifest
from evilm.tasks.finetune import finetune
from helpers.commands import finish, kill, start, wait_for
from helpers.paths import SMALL
from helpers.workflow import TUNE_STEPS, Workflow, losses_and_scores, small_finetune


@pytest.fixture(scope="module")
def root(tuned_questions: Workflow) -> Path:
    """The root of the model that was fine-tuned on questions; other outputs may be added."""
    return tuned_questions[0]


@pytest.fixture(scope="module")
def tuned(tuned_questions: Workflow) -> dict[str, Any]:
    """The summary of that fine-tuning."""
    return tuned_questions[1]


def test_the_best_step_on_val_is_published_with_its_head(root: Path, tuned: dict[str, Any]) -> None:
    assert tuned["steps"] == TUNE_STEPS
    assert tuned["best"]["metric"] == "score"
    assert tuned["published"]["step"] == tuned["best"]["step"]
    model = TaskModel.from_pretrained(tuned["out"])
    assert (model.spec.task, model.spec.kind) == ("msvd-qa", "answer")
    kept = TaskModel.from_pretrained(f"{tuned['out']}/checkpoints/{tuned['best']['checkpoint']}")
    for ours, theirs in ((model.head, kept.head), (model.student, kept.student)):
        for name, value in ours.state_dict().items():
            assert value.equal(theirs.state_dict()[name]), name
    assert evilm.EViLM.from_pretrained(tuned["out"]).student.config.dim == model.student.config.dim


def test_finished_fine_tuning_is_reused(root: Path, tuned: dict[str, Any]) -> None:
    again = finetune(small_finetune(root))
    assert again["reused"]
    assert again["fingerprint"] == tuned["fingerprint"]


def test_finetuned_model_has_seen_its_own_and_its_models_training_clips(root: Path, tuned: dict[str, Any]) -> None:
    frames = FrameManifest.load(str(root / "frames"))
    for split in ("train", "test", "val"):
        _, hashes = clip_hashes(frames, [split])
        for model in (tuned["out"], str(root / "model")):
            seen = read_seen(model)
            assert set(is_seen(seen.trained, hashes)) == {split == "train"}, (split, model)
            assert set(is_seen(seen.chosen, hashes)) == {split == "val"}, (split, model)


@pytest.mark.long
def test_a_continued_fine_tuning_equals_an_unbroken_one(root: Path, tuned: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "model"
    finetune(small_finetune(root, out=str(out), **{"schedule.max_steps": 5}))
    finetune(small_finetune(root, out=str(out)))
    assert losses_and_scores(out) == losses_and_scores(Path(tuned["out"]))
    for name in ("model.safetensors", "head.safetensors"):
        assert (out / name).read_bytes() == (Path(tuned["out"]) / name).read_bytes()


@pytest.mark.long
def test_a_score_that_does_not_rise_ends_the_training(root: Path, tmp_path: Path) -> None:
    values = {"optim.lr": 1e-12, "schedule.patience": 2, "schedule.max_steps": 100}
    summary = finetune(small_finetune(root, out=str(tmp_path / "model"), **values))
    assert summary["stopped_early"]
    assert summary["steps"] < 3 * TUNE_STEPS
    assert summary["best"]["step"] < summary["steps"]
    again = finetune(small_finetune(root, out=str(tmp_path / "model"), **values))
    assert again["reused"]


@pytest.mark.long
@pytest.mark.parametrize("task", ["didemo-retrieval", "tgif-transition", "hmdb51", "kinetics-400"])
def test_other_kinds_of_tasks_are_trained(root: Path, task: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"schedule.max_steps": 4, "out": str(tmp_path / "model")}
    values |= {} if task == "didemo-retrieval" else {"items.val_share": 0.2}  # there is no official val split
    summary = finetune(small_finetune(root, task, **values))
    assert 0 <= summary["val"]["score"] <= 1
    assert TaskModel.from_pretrained(summary["out"]).spec.task == task


@pytest.mark.long
def test_from_scratch_lists_only_clips_of_the_task_as_seen(root: Path, tmp_path: Path) -> None:
    values = {"from_scratch": True, "out": str(tmp_path / "model"), "schedule.max_steps": 2, "items.val_share": 0.2}
    summary = finetune(small_finetune(root, "hmdb51", **values))
    known = read_seen(str(root / "model"))
    assert 0 < len(read_seen(summary["out"]).trained) < len(known.trained)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"task": ""}, UsageError, "--task is missing; use msrvtt-retrieval"),
        ({"task": "msrvtt-mc"}, UsageError, "no items of split train; score a model of msrvtt-retrieval"),
        ({"max_text_len": 100}, ConfigError, r"max_text_len = 100 is over text_positions = 64"),
        ({"num_frames": 3}, ConfigError, r"3, which does not divide it"),
        ({"head.type": "match"}, ConfigError, r"head.type = 'match' is for tasks of kind choice"),
        ({"annotations": "nowhere"}, ConfigError, r"nowhere has no annotations of msvd-qa"),
    ],
)
def test_a_wrong_setting_ends_in_one_line(root: Path, values: dict[str, Any], error: type, message: str) -> None:
    from evilm.errors import EvilmError

    values = {"out": str(root / "none")} | values
    with pytest.raises((error, EvilmError), match=message):
        finetune(small_finetune(root, **values))


@pytest.mark.long
@pytest.mark.faults
def test_a_killed_fine_tuning_goes_on_bit_equal(root: Path, tuned: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run" / "model"
    flags = ["--preset", str(SMALL), "--root", str(root), "--task", "msvd-qa", "--out", str(out)]
    flags += ["--schedule.max-steps", str(TUNE_STEPS), "--schedule.eval-every-epochs", "0.25", "--take-over", "true"]
    process = start("finetune", *flags)
    wait_for(lambda: (out / "checkpoints" / "step_00000004-001" / "digests.json").exists(), process)
    kill(process, and_workers=True)
    assert not (out / "summary.json").exists()
    finish(start("finetune", *flags))
    assert losses_and_scores(out) == losses_and_scores(Path(tuned["out"]))
    for name in ("model.safetensors", "head.safetensors"):
        assert (out / name).read_bytes() == (Path(tuned["out"]) / name).read_bytes()
    assert json.loads((out / "summary.json").read_text())["fingerprint"] == tuned["fingerprint"]
