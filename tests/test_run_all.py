"""The workflow as one job: `pipelines/all.py` on a root where pre-training stands."""

import json
from pathlib import Path

import pytest

from evilm.config.command_line import parse
from evilm.config.presets import defaults
from evilm.config.stages import Pretrain, RunAll
from evilm.errors import ConfigError, EvilmError
from evilm.run_all import run_all
from helpers.paths import SMALL
from helpers.workflow import Workflow, copy_workflow


@pytest.fixture(scope="module")
def root(small_workflow: Workflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small workflow, to write into."""
    return copy_workflow(small_workflow[0], tmp_path_factory.mktemp("chain") / "root")


def all_config(root: Path, *flags: str) -> RunAll:
    config = parse("all", ["--preset", str(SMALL), "--root", str(root), *flags])
    assert isinstance(config, RunAll)
    return config


@pytest.mark.long
def test_run_all_scores_the_model_and_writes_one_summary(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_all(all_config(root))
    assert {name: stage["state"] for name, stage in summary["stages"].items()} == dict.fromkeys(
        ("corpus", "frames", "vocab", "tokenizer", "codes", "model", "benchmark"), "done"
    )
    assert summary["model"]["out"] == str(root / "model")
    assert summary["num_clips"] == 24
    assert 0 <= summary["metrics"]["t2v_r10"] <= 1
    assert json.loads((root / "all" / "summary.json").read_text()) == summary
    assert "zero-shot scores" in capsys.readouterr().out
    again = run_all(all_config(root))
    assert again["reused"]
    assert again["metrics"] == summary["metrics"]


def test_rejected_settings_are_named_by_the_flags_of_all(root: Path) -> None:
    with pytest.raises(EvilmError, match="made with other settings"):
        run_all(all_config(root, "--optim.lr", "3e-4"))
    with pytest.raises(ConfigError, match=r"here its settings are --set shard_videos\.NAME=VALUE"):
        run_all(all_config(root, "--set", "shard_videos.sampling.jpeg_quality=50"))
    with pytest.raises(EvilmError, match=r"here its settings are --set benchmark\.NAME=VALUE"):
        run_all(all_config(root, "--set", "benchmark.split=nowhere"))


def test_preset_means_the_same_for_all_as_for_each_command() -> None:
    config = defaults("all", "tiny")
    assert isinstance(config, RunAll)
    pretrain = defaults("pretrain", "tiny")
    assert {name: getattr(config, name) for name in Pretrain.model_fields} == dict(pretrain)
    scored = defaults("benchmark", "tiny")
    assert dict(config.benchmark) == {name: getattr(scored, name) for name in type(config.benchmark).model_fields}
