"""Help in two levels, settings by flag, `--set`, preset and space, and what is refused in one line."""

import contextlib
import io
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilm.config.base import Config, flatten
from evilm.config.command_line import parse
from evilm.config.presets import load
from evilm.config.stages import STAGES, Pretrain
from evilm.errors import ConfigError
from helpers.paths import ROOT


def _said(capsys: pytest.CaptureFixture[str], stage: str, *arguments: str) -> str:
    """Return the one line with which a command ends that can't be obeyed."""
    with pytest.raises(SystemExit) as stop:
        parse(stage, arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def _help(stage: str, *arguments: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as stop:
        parse(stage, arguments)
    assert stop.value.code == 0
    return shown.getvalue()


def _settings(text: str) -> list[str]:
    """Return the settings that a help text lists."""
    found = re.findall(r"^  (?:-h, )?(--\S+)", text, re.MULTILINE)
    return [flag for flag in found if flag not in ("--help", "--help-all", "--set")]


def test_help_of_pretrain_shows_twenty_to_thirty_settings_and_help_all_at_most_120() -> None:
    assert 20 <= len(_settings(_help("pretrain", "--help"))) <= 30
    assert len(_settings(_help("pretrain", "--help-all"))) <= 120


@pytest.mark.parametrize("stage", STAGES)
def test_help_shows_common_settings_and_where_the_others_are(stage: str) -> None:
    common, everything = _help(stage, "--help"), _help(stage, "--help-all")
    assert set(_settings(common)) < set(_settings(everything))
    assert len(_settings(common)) <= 30
    assert "--help-all shows all settings" in common
    assert "None" not in common + everything


@pytest.mark.parametrize("stage", STAGES)
def test_example_in_the_help_text_parses(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r"^example:\n  python (.*)", _help(stage, "-h"), re.MULTILINE)
    path, *arguments = shlex.split(command)
    assert (ROOT / path).is_file()
    assert arguments
    parse(stage, arguments)


@pytest.mark.parametrize("stage", STAGES)
def test_paragraphs_of_help_have_one_indent(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    groups = re.split(r"^\S.*:$", _help(stage, "--help-all").partition("\nexample:")[0], flags=re.MULTILINE)[1:]
    for group in groups:
        flags = [line for line in group.splitlines() if re.match(r"  --?\w", line)]
        texts = {len(line) - len(line.lstrip()) for line in group.splitlines() if line.strip() and line not in flags}
        assert texts <= {2, 8}
        assert all(len(line) <= 80 for line in group.splitlines() if line not in flags)


def test_help_shows_the_values_of_the_preset() -> None:
    assert "(default: 0.001)" in _help("pretrain", "--preset", "tiny", "--help")


def test_set_changes_settings_of_other_stages_and_of_the_command() -> None:
    config = parse(
        "all",
        [
            *("--preset", "tiny", "--set", "shard_videos.sampling.jpeg_quality=50"),
            *("--set=train-tokenizer.schedule.eval-at-steps=[3, 4]", "--set", "benchmark.split=train"),
            *("--set", "optim.lr=3e-4", "--optim.beta1", "0.5", "--set", "optim.beta1=0.6"),
        ],
    )
    assert config.shard_videos.sampling.jpeg_quality == 50
    assert config.train_tokenizer.schedule.eval_at_steps == (3, 4)
    assert config.benchmark.split == "train"
    assert (config.optim.lr, config.optim.beta1) == (3e-4, 0.6), "the last one counts"


def test_settings_that_fit_only_together_are_validated_together() -> None:
    wanted = ["--arch.input-px", "128", "--set", "train_tokenizer.arch.input_px=128"]
    config = parse("pretrain", ["--preset", "tiny", *wanted])
    assert config.arch.grid == config.train_tokenizer.arch.grid == 4


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            "shard_videos.sampling.frame_pxx=128",
            "'shard_videos.sampling.frame_pxx'; did you mean shard_videos.sampling.fr",
        ),
        ("shard_video.sampling.frame_px=128", "did you mean shard_videos.sampling.frame_px"),
        (
            "shard_videos.sampling.frame_px=100",
            "shard_videos.sampling.frame_px = '100': Input should be a multiple of 32",
        ),
        (
            "shard_videos.cluster.num_workers=many",
            "shard_videos.cluster.num_workers = 'many': Input should be a valid int",
        ),
        ("shard_videos.out=x", "no setting named 'shard_videos.out'"),
        ("train_tokenizer.overwrite=true", "no setting named 'train_tokenizer.overwrite'"),
        (
            "build.shard_videos.limit=3",
            "no setting named 'build.shard_videos.limit': it is called 'shard_videos.limit' now",
        ),
        ("xyz=1", "no setting named 'xyz'; --dry-run shows all"),
        ("optim.lr", "--set optim.lr: use NAME=VALUE, such as"),
        ("schedule.eval_at_steps=[1", "not valid YAML"),
        ("cluster.gpus_per_worker=1.5", "cluster.gpus_per_worker = '1.5': a worker computes on one GPU; use 1, and as"),
        ("cluster.gpus_per_worker=2", "cluster.gpus_per_worker = '2': a worker computes on one GPU; use 1, and as man"),
        ("cluster.collective_timeout_s=1e300", "= '1e300': Input should be less than or equal to 604800"),
        ("schedule.eval_at_steps=[1, x]", "schedule.eval_at_steps.1 = 'x': Input should be a valid integer"),
    ],
)
def test_set_refuses_what_does_not_exist_or_fit(change: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wanted in _said(capsys, "pretrain", "--set", change)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (("cluster.gpus_per_worker=0.5", "cluster.num_workers=2"), "cluster.gpus_per_worker = 0.5 with cluster.num_w"),
        (("schedule.batch_clips=1",), "schedule.batch_clips = 1; use 2 or more"),
        (("schedule.batch_clips=0", "schedule.worker_clips=1"), "schedule.batch_clips = 1; use 2 or more"),  # resolved
        (("arch.encoder_heads=7",), "arch.encoder_heads = 7 does not divide the width 96"),
    ],
)
def test_settings_that_do_not_fit_are_named_with_their_stage(
    changes: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--set=train_tokenizer.{change}" for change in changes]
    assert _said(capsys, "pretrain", "--preset", "tiny", *flags).startswith(f"train_tokenizer.{wanted}")
    own = [f"--set={change}" for change in changes]
    assert _said(capsys, "train_tokenizer", "--preset", "tiny", *own).startswith(wanted)


@pytest.mark.parametrize(
    ("stage", "flags", "advice"),
    [
        ("pretrain", "--build.shard-videos.sampling.frame-px 128", "--set shard_videos.sampling.frame_px=128"),
        ("pretrain", "--build.shard_videos.sampling.frame_px=128", "--set shard_videos.sampling.frame_px=128"),
        ("pretrain", "--build.shard-videos.fetch.urls", "--set shard_videos.fetch.urls=true"),
        ("pretrain", "--build.shard-videos.fetch.no-urls", "--set shard_videos.fetch.urls=false"),
        ("sweep", "--build.train-tokenizer.arch.max-words", "did you mean "),
        (
            "all",
            "--build.train-tokenizer.schedule.accumulate 2",
            "--set train_tokenizer.schedule.gradient_accumulation_steps=2",
        ),
        ("all", "--benchmark.split train", "--set benchmark.split=train"),
        ("all", "--train-tokenizer.optim.lr 1", "--set train_tokenizer.optim.lr=1"),
        ("pretrain", "--optim.lrr 1", "unknown flag --optim.lrr; did you mean --optim.lr"),
        ("pretrain", "--train-tokenizer.optim.lrr 1", "did you mean --set train_tokenizer.optim.lr="),
        (
            "pretrain",
            "--nothing-like-it",
            "it is not a setting of this command (all flags: pipelines/pretrain.py --help-all)",
        ),
    ],
)
def test_unknown_flag_error_suggests_the_right_spelling(
    stage: str, flags: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert advice in _said(capsys, stage, *flags.split())


def test_old_preset_section_is_rejected_with_the_new_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("pretrain: {build: {shard_videos: {limit: 3}}}")
    with pytest.raises(ConfigError, match=r"'build\.shard_videos\.limit': it is called 'shard_videos\.limit' now"):
        load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--cluster.fused"], True),
        (["--cluster.fused", "true"], True),
        (["--cluster.fused=True"], True),
        (["--cluster.fused", "false"], False),
        (["--cluster.no-fused"], False),
        (["--no-cluster.fused"], False),
        (["--set", "cluster.fused=true"], True),
        (["--cluster.fused", "--cluster.fused=false"], False),
    ],
)
def test_switches_take_true_and_false_as_yaml_does(flags: list[str], wanted: bool) -> None:
    assert parse("pretrain", [*flags, "--preset", "tiny"]).cluster.fused is wanted


def test_switches_reject_other_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cluster.fused = 'maybe': Input should be a valid boolean" in _said(
        capsys, "pretrain", "--cluster.fused", "maybe"
    )


def test_stage_section_may_hold_settings_of_its_own_command_only(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("shard_videos: {manifest: a.csv, out: frames, limit: 3, tracking: {enabled: false}}")
    assert parse("shard_videos", ["--preset", str(preset)]).out == "frames"
    assert parse("pretrain", ["--preset", str(preset)]).shard_videos.limit == 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "pretrain:\n  optim: {lr: 1.0e-3}\n  seed: 1\n  optim: {}\n",
            "'optim' is given in line 2 and again in line 4",
        ),
        ("pretrain: {}\npretrain: {}\n", "'pretrain' is given in line 1 and again in line 2"),
        ("pretrain: {optim: {lr: 1, lr: 2}}", "'lr' is given in line 1 and again in line 1"),
    ],
)
def test_duplicate_keys_are_rejected_with_their_lines(
    text: str, wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(text)
    assert _said(capsys, "pretrain", "--preset", str(preset)) == f"--preset {preset}: {wanted}"


def test_duplicate_settings_of_a_space_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: [1.0e-3]\noptim.beta1: [0.9]\noptim.lr: [1.0e-4]\n")
    assert "'optim.lr' is given in line 1 and again in line 3" in _said(capsys, "sweep", "--space", str(space))


def test_merge_keys_of_yaml_are_no_duplicates(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("pretrain: {optim: &o {lr: 1.0e-3}}\ntrain_tokenizer: {optim: {<<: *o, lr: 2.0e-3}}\n")
    assert load(str(preset))["train_tokenizer"]["optim"]["lr"] == 2e-3


def _floats(section: Config) -> Iterator[str]:
    for name, value in flatten(section.model_dump()).items():
        if isinstance(value, float):
            yield name


@pytest.mark.parametrize("stage", STAGES)
def test_no_setting_may_be_infinite_or_nan(stage: str) -> None:
    config = STAGES[stage]()
    for name in _floats(config):
        for value in (math.inf, -math.inf, math.nan):
            with pytest.raises(ConfigError, match=f"{re.escape(name)} = .*: Input should be a finite number"):
                config.override({name: value})


@pytest.mark.parametrize("value", ["inf", "1e999", "nan", "-1e999"])
def test_infinite_rate_is_rejected_by_flag_preset_and_space(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "optim.lr = " in _said(capsys, "pretrain", f"--optim.lr={value}")
    assert "optim.lr = " in _said(capsys, "pretrain", "--set", f"optim.lr={value}")
    in_yaml = value if "e" in value else f".{value}"
    preset, space = tmp_path / "preset.yaml", tmp_path / "space.yaml"
    preset.write_text(f"pretrain: {{optim: {{lr: {in_yaml}}}}}")
    assert "optim.lr = " in _said(capsys, "pretrain", "--preset", str(preset))
    space.write_text(f"optim.lr: [1.0e-3, {in_yaml}]")
    assert "optim.lr = " in _said(capsys, "sweep", "--space", str(space))
    space.write_text(f"schedule.batch_clips: [{in_yaml}]")
    assert "schedule.batch_clips = " in _said(capsys, "sweep", "--space", str(space))


def test_last_value_of_a_flag_wins(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("pretrain: {seed: 1}".replace("seed", "views"))
    config: Any = parse("pretrain", ["--preset", str(preset), "--views", "2", "--views", "3"])
    assert isinstance(config, Pretrain)
    assert config.views == 3


@pytest.mark.parametrize("flag", ["--help-all", "--dry-run"])
def test_reader_of_a_pipe_may_leave_early(flag: str) -> None:
    command = f"set -o pipefail; {sys.executable} pipelines/pretrain.py {flag} | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
