"""Presets, overrides and the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from evilm.config.base import flatten
from evilm.config.command_line import dump, parse
from evilm.config.presets import defaults, load, names
from evilm.config.stages import STAGES, Pretrain
from evilm.errors import ConfigError
from helpers.paths import ROOT


@pytest.mark.parametrize("preset", names())
@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_survives_a_dump_and_a_load(preset: str, stage: str) -> None:
    config = defaults(stage, preset)
    assert STAGES[stage].model_validate(yaml.safe_load(dump(config))) == config


def test_paper_preset_holds_every_value_of_section_4_1() -> None:
    config = defaults("pretrain", "paper")
    assert isinstance(config, Pretrain)
    arch, tokenizer = config.arch, config.train_tokenizer
    assert (arch.video_encoder, arch.input_px, arch.num_frames) == ("edgenext_small", 256, 4)
    assert (arch.text_dim, arch.text_layers, arch.text_heads, arch.dim, arch.decoder_layers) == (128, 12, 4, 384, 4)
    assert (config.objectives.mlm_ratio, config.objectives.mask_ratio, config.objectives.mask_shape) == (
        0.15,
        0.4,
        "block",
    )
    assert (config.optim.lr, config.optim.weight_decay, config.schedule.epochs) == (1e-4, 0.01, 20)
    assert (tokenizer.optim.lr, tokenizer.schedule.epochs) == (2e-4, 10)
    codebook = tokenizer.arch.codebook
    assert (codebook.num_codes, codebook.code_dim, codebook.init, tokenizer.arch.decoder_layers) == (
        9420,
        32,
        "random",
        8,
    )
    assert config.build_vocab.words.keep_ratio == 0.3
    assert config.shard_videos.sampling.frame_px == 256


def test_flags_override_the_preset() -> None:
    config = parse("pretrain", ["--preset", "tiny", "--optim.lr", "3e-4", "--set", "train_tokenizer.schedule.epochs=1"])
    assert config.optim.lr == 3e-4
    assert config.train_tokenizer.schedule.epochs == 1
    assert config.arch.video_encoder == "test_convnext3"


def test_short_flags_of_shard_videos(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--frames", "2", "--frames-stored", "8"], ["--frames=2", "--frames_stored=8"]):
        sampling = parse("shard_videos", flags).sampling
        assert (sampling.num_frames, sampling.frames_stored, sampling.stored) == (2, 8, 8)
    assert parse("shard_videos", ["--frames", "3"]).sampling.stored == 3
    assert parse("pretrain", ["--frames", "some/where"]).frames == "some/where"  # a place, in other commands
    for flags, wanted in (
        (["--frames-stored", "6"], "frames_stored = 6 is not a multiple of num_frames = 4; use e.g. 8"),
        (["--frames-stored", "96"], "less than or equal to 64"),
        (["--frames", "some/where"], "some/where"),
    ):
        with pytest.raises(SystemExit):
            parse("shard_videos", flags)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert wanted in lines[0]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--optim.lrr", "3"], "--optim.lrr"),
        (["--optim.lr", "abc"], "optim.lr = 'abc': Input should be a valid number"),
        (["--optim.lr", "-1"], "optim.lr = '-1': Input should be greater than 0"),
        (["--objectives.mask-shape", "blob"], "blob"),
        (["--preset", "tinyy"], "gpu, paper, tiny"),
        (["--preset"], "--preset: expected one argument"),
        (["--preset", "tiny", "--arch.input-px", "128"], "the model has 4 x 4 regions"),
        (["--schedule.batch-clips", "7", "--cluster.num-workers", "2"], "use 8"),
        ([f"--objectives.{name}-weight=0" for name in ("mlm", "vtm", "mvm")], "nothing to learn"),
        (["stray"], "stray"),
    ],
)
def test_wrong_flag_exits_with_one_line_and_code_2(
    flags: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("pretrain", flags)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert wanted in lines[0]


def test_dry_run_prints_the_resolved_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("benchmark", ["--dry-run", "--num-choices", "3"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["num_choices"] == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("arch.max_words", "arch.max_text_len"),
        ("schedule.accumulate", "schedule.gradient_accumulation_steps"),
        ("cluster.feed_threads", "cluster.loader_threads"),
    ],
)
def test_old_setting_name_is_rejected_with_the_new_one(
    old: str, new: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag, other = (f"--{name.replace('_', '-')}" for name in (old, new))
    for arguments in ([flag, "2"], [f"{flag}=2"]):
        with pytest.raises(SystemExit):
            parse("pretrain", arguments)
        assert capsys.readouterr().err == f"error: {flag}: it is called {other} now\n"
    with pytest.raises(ConfigError, match=f"no setting named '{old}': it is called '{new}' now"):
        Pretrain().override({old: 2})
    section, leaf = old.split(".")
    file = tmp_path / "mine.yaml"
    file.write_text(f"pretrain: {{{section}: {{{leaf}: 2}}}}")
    with pytest.raises(ConfigError, match=f"no setting named '{old}': it is called '{new}' now"):
        load(str(file))


def test_preset_files_are_validated(tmp_path: Path) -> None:
    for text, wanted in [
        ("pretrain: {optim: {lrr: 1}}", "no setting named 'optim.lrr'; did you mean optim.lr"),
        ("pretrian: {}", "no command is called 'pretrian'"),
        ("pretrain: 3", "must hold settings"),
        ("[1, 2]", "one section per command"),
        ("a: [", "not valid YAML"),
    ]:
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=wanted):
            load(str(file))
    for data, wanted in [(b"pretrain: {out: caf\xe9}", "not UTF-8"), (b"a: 2024-99-99", "not valid YAML")]:
        file.write_bytes(data)
        with pytest.raises(ConfigError, match=wanted) as caught:
            load(str(file))
        assert "\n" not in str(caught.value)


def test_override_validates_again() -> None:
    config = defaults("pretrain", "tiny")
    assert config.override({"optim.lr": 3e-4}).model_dump()["optim"]["lr"] == 3e-4
    with pytest.raises(ConfigError, match="no setting named"):
        config.override({"optim.rate": 1})
    with pytest.raises(ConfigError, match="greater than 0"):
        config.override({"optim.lr": 0})


def test_loader_threads_follow_from_cpus_per_worker() -> None:
    found = {
        cpus: Pretrain().override({"cluster.cpus_per_worker": cpus}).cluster.num_loader_threads for cpus in (1, 2, 8)
    }
    assert found == {1: 2, 2: 2, 8: 7}
    assert Pretrain().override({"cluster.loader_threads": 5}).cluster.num_loader_threads == 5


def test_help_and_typos_answer_before_heavy_imports() -> None:
    stage = ROOT / "pipelines" / "pretrain.py"
    code = "import sys, runpy; sys.argv = ['pretrain.py', '--nope']\n"
    code += f"try: runpy.run_path({str(stage)!r}, run_name='__main__')\n"
    code += "except SystemExit as stop: print(stop.code, 'torch' in sys.modules, 'ray' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["2", "False", "False"]


def test_workers_do_not_share_a_gpu() -> None:
    one = Pretrain().override({"cluster.gpus_per_worker": 0.5})
    assert one.cluster.uses_gpus
    with pytest.raises(
        ConfigError, match=r"cluster\.gpus_per_worker = 0\.5 with cluster\.num_workers = 2: NCCL refuses"
    ):
        Pretrain().override({"cluster.gpus_per_worker": 0.5, "cluster.num_workers": 2})


@pytest.mark.parametrize("steps", ["20", "5:5", "b:c", "-1:4"])
def test_invalid_profile_steps_are_rejected(steps: str) -> None:
    with pytest.raises(ConfigError, match="use A:B with A below B"):
        Pretrain().override({"profile_steps": steps})
    assert Pretrain().override({"profile_steps": "20:25"}).profiled == range(20, 25)


def test_gpu_preset_scales_batch_and_learning_rate_with_workers() -> None:
    for workers, batch, lr in [(1, 64, 5e-5), (4, 256, 1e-4), (8, 512, 1.4142135623730951e-4)]:
        config = parse("pretrain", ["--preset", "gpu", "--cluster.num-workers", str(workers)])
        assert (config.schedule.batch_clips, config.optim.lr) == (batch, pytest.approx(lr, rel=1e-12))
        tokenizer = config.train_tokenizer
        assert (tokenizer.schedule.batch_clips, tokenizer.optim.lr) == (64, 2.5e-4), "it has workers of its own"
    config = parse(
        "pretrain", ["--preset", "gpu", "--cluster.num-workers", "2", "--schedule.gradient_accumulation_steps", "8"]
    )
    assert (config.schedule.batch_clips, config.optim.lr) == (1024, 2e-4)
    config = parse("train_tokenizer", ["--preset", "gpu", "--cluster.num-workers", "4", "--optim.lr", "8e-4"])
    assert (config.schedule.batch_clips, config.optim.lr) == (256, 8e-4)
    given = parse("pretrain", ["--preset", "gpu", "--schedule.worker-clips", "0", "--schedule.batch-clips", "1024"])
    assert (given.schedule.batch_clips, given.optim.lr) == (1024, 2e-4)


def test_resolved_batch_and_learning_rate_ignore_missing_workers() -> None:
    config = parse("pretrain", ["--preset", "gpu", "--cluster.num-workers", "8", "--cluster.min-workers", "1"])
    assert config.resolved() == config
    fewer = config.override({"cluster.num_workers": 2}).resolved()
    assert fewer.identity == config.identity
    unresolved = defaults("pretrain", "gpu").override({"cluster.num_workers": 8})
    assert unresolved.identity == config.identity
    assert parse("pretrain", ["--preset", "gpu"]).identity != config.identity


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_presets_with_a_batch_size_are_not_rescaled(preset: str) -> None:
    config = defaults("pretrain", preset)
    assert isinstance(config, Pretrain)
    assert config.resolved() == config
    assert not {"worker_clips", "lr_batch_clips"} & set(flatten(config.identity))


def test_batch_size_sweep_keeps_the_resolved_learning_rate() -> None:
    config = parse("lr_batch", ["--preset", "gpu", "--cluster.num-workers", "8"])
    assert config.base.override({"schedule.batch_clips": 128}).optim.lr == config.optim.lr


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--preset", "gpu", "--schedule.batch-clips", "512"], "batch_clips = 512 and worker_clips = 64; set"),
        (["--preset", "tiny", "--schedule.batch-clips", "0"], "batch_clips = 0 and worker_clips = 0; set"),
        (["--preset", "gpu", "--schedule.worker-clips", "1"], "schedule.batch_clips = 1; use 2 or more"),
    ],
)
def test_exactly_one_of_batch_and_worker_clips_must_be_given(
    flags: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse("pretrain", flags)
    assert wanted in capsys.readouterr().err
