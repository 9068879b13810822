"""Spaces: what is read, and what is refused in one line before anything runs."""

from pathlib import Path

import pytest

from evilm.config.command_line import parse
from evilm.config.presets import defaults
from evilm.config.stages import STAGES, Pretrain, Sweep
from evilm.config.sweep_space import Choices, Range, read_space, space_names
from evilm.errors import UsageError
from evilm.sweep.sweep_plan import make_plan
from evilm.sweep.trial_folder import make_trials

SWEEPS = [name for name, kind in STAGES.items() if issubclass(kind, Sweep)]


def _settings(*flags: str, stage: str = "sweep", out: str = "") -> list[dict]:
    config = parse(stage, ["--preset", "tiny", *flags])
    (settings,) = make_plan(config, read_space(config.space, config.values), out)
    return settings


@pytest.mark.parametrize("name", space_names())
def test_packaged_spaces_fit_a_preset(name: str) -> None:
    preset = "tiny" if name.endswith("_tiny") else "paper"
    config = parse("sweep", ["--preset", preset, "--space", name])
    assert all(isinstance(axis, Choices) for axis in read_space(config.space).values())


def test_sweep_settings_come_from_pretrain_then_sweep_then_its_own_section(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(
        "pretrain: {optim: {lr: 1.0e-3, beta1: 0.8}}\n"
        "sweep: {optim: {lr: 2.0e-3}, seeds: 3}\n"
        "lr_batch: {seeds: 4, train_tokenizer: {schedule: {epochs: 1}}}\n"
        "train_tokenizer: {schedule: {epochs: 7, batch_clips: 64}}\n"
    )
    found = {
        stage: parse(stage, ["--preset", str(preset), "--space", "masking_ratio"]) for stage in ("sweep", "lr_batch")
    }
    assert [(c.optim.lr, c.optim.beta1, c.seeds) for c in found.values()] == [(2e-3, 0.8, 3), (2e-3, 0.8, 4)]
    schedules = [config.train_tokenizer.schedule for config in found.values()]
    assert [(s.epochs, s.batch_clips) for s in schedules] == [(7, 64), (1, 64)]
    plain = defaults("pretrain", str(preset))
    assert isinstance(plain, Pretrain)
    assert plain.optim.lr == 1e-3


@pytest.mark.parametrize(
    ("lines", "flags", "wanted"),
    [
        (
            "objectives.mask_ration: [0.2]",
            [],
            "no setting named 'objectives.mask_ration'; did you mean objectives.mask_",
        ),
        (
            "objectives.mask_ratio: [0.2, 1.5]",
            [],
            "invalid combination in the space (objectives.mask_ratio = 1.5): objectives.mask_ratio = 1.5:",
        ),
        ("schedule.batch_clips: [32, 1]", [], "schedule.batch_clips = 1"),
        (
            "arch.decoder_heads: [4, 3]",
            [],
            "invalid combination in the space (arch.decoder_heads = 3): arch.decoder_heads = 3 does not divide",
        ),
        ("objectives.mask_ratio: 0.2", [], "expected a list of values or {low"),
        ("optim.lr: {low: 1e-3, high: 1e-4}", [], "is not a range"),
        ("optim.lr: {low: 1e-5, high: 1e-3, log: true}", [], "a range has no grid"),
        ("optim.lr: {low: 1e-5, high: fast}", ["--search", "random"], "'fast' is not a number"),
        ("optim.lr: {low: 1e-4, high: .inf, log: true}", ["--search", "random"], "inf is not an end of a range"),
        ("optim.lr: {low: .nan, high: 1}", ["--search", "random"], "nan is not an end of a range"),
        ("optim.lr: {low: 1, high: 1" + 400 * "0" + "}", ["--search", "random"], "is not an end of a range"),
        ("schedule.batch_clips: {low: 8, high: 64.5}", ["--search", "random"], "takes whole numbers only"),
        ("optim.lr: [1e-3]", ["--score", "nonsense"], "nonsense: no such held-out metric; use match_auc, loss, mlm_"),
        ("optim.lr: [1e-3]", ["--score", "vtm_loss", "--objectives.vtm-weight", "0"], "no such held-out metric"),
        ("optim.lr: [", [], "not valid YAML"),
        ("\udcff: [1]", [], "not UTF-8 text"),
        ("", [], "expected lines like"),
        ("out: [a, b]", [], "out cannot be swept: each trial has its own"),
        ("cluster.num_workers: [1, 2]", [], "cluster.num_workers cannot be swept"),
        ("schedule.seed: [1, 2]", [], "cannot be swept together with --seeds; remove it"),
        (
            "train_tokenizer.arch.codebook.num_codes: [64]",
            ["--tokenizer", "t"],
            "because --tokenizer fixes the tokenizer",
        ),
        ("optim.lr: [1e-3]\noptim.beta1: [0.9]", ["--values", "1"], "write a space file"),
    ],
)
def test_invalid_spaces_are_rejected_in_one_line(
    lines: str, flags: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(lines, errors="surrogateescape")
    with pytest.raises(SystemExit) as end:
        parse("sweep", ["--preset", "tiny", "--space", str(space), *flags])
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert wanted in said[0]


def test_grids_and_random_draws_follow_the_space(tmp_path: Path) -> None:
    grid = _settings(stage="lr_batch")
    assert len(grid) == 6
    assert grid[:3] == [
        {"optim.lr": 3e-4, "schedule.batch_clips": 16},
        {"optim.lr": 3e-4, "schedule.batch_clips": 32},
        {"optim.lr": 1e-3, "schedule.batch_clips": 16},
    ]
    assert _settings("--values", "0.3,.5", stage="masking_ratio") == [
        {"objectives.mask_ratio": 0.3},
        {"objectives.mask_ratio": 0.5},
    ]
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: {low: 1e-5, high: 1e-3, log: true}\nschedule.batch_clips: {low: 8, high: 64}\n")
    flags = ("--space", str(space), "--search", "random")
    few, more = _settings(*flags, "--trials", "4"), _settings(*flags, "--trials", "6")
    assert more[:4] == few, "more trials begin with the same"
    assert len({str(values) for values in more}) == 6
    assert all(1e-5 <= values["optim.lr"] <= 1e-3 and 8 <= values["schedule.batch_clips"] <= 64 for values in more)
    assert _settings(*flags, "--search-seed", "1", "--trials", "4") != few
    space.write_text("schedule.batch_clips: [8, 16, 32]\n")
    assert len(_settings(*flags, "--trials", "9")) == 3, "no more than there are"
    assert read_space(str(space)) == {"schedule.batch_clips": Choices((8, 16, 32))}


def test_equal_settings_have_equal_trials_however_written(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: [1e-3, 0.001, '1.0e-3']\n")
    settings = _settings("--space", str(space))
    assert settings == [{"optim.lr": 1e-3}]
    names = [trial.name for trial in make_trials(0, settings[0], 2, "somewhere")]
    assert names == [trial.name for trial in make_trials(7, {"optim.lr": 0.001}, 2, "elsewhere")]
    assert names[0].startswith("lr=0.001-")
    assert [name[-3:] for name in names] == ["-s0", "-s1"]


def test_integer_settings_draw_integers(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    lines = ["schedule.batch_clips: {low: 8, high: 1e9, log: true}", "optim.lr: {low: 1, high: 2}"]
    lines += ["schedule.max_steps: {low: 2.0, high: 9}", "train_tokenizer.schedule.epochs: {low: 1, high: 99}"]
    space.write_text("\n".join(lines))
    for values in _settings("--space", str(space), "--search", "random", "--trials", "5"):
        batch, rate, *others = values.values()
        assert isinstance(batch, int)
        assert 1 < rate < 2
        assert all(isinstance(value, int) for value in others)
    assert Range(1e-5, 1e-3, log=True).middle == pytest.approx(1e-4)
    assert Range(1, 4, whole=True).middle in (2, 3)


def test_optuna_tries_each_setting_once(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    space = tmp_path / "space.yaml"
    space.write_text("schedule.batch_clips: [8, 16]\nobjectives.mask_ratio: ['0.2', 0.2, 0.4]\n")
    flags = ["--preset", "tiny", "--space", str(space), "--search", "optuna", "--trials", "9"]
    config = parse("sweep", flags)

    def run(score: float | None) -> list[dict]:
        """Return settings in their order, all with this score."""
        plan = make_plan(config, read_space(config.space), str(tmp_path))
        found = group = list(next(plan))
        while True:
            try:
                group = plan.send([score] * len(group))
            except StopIteration:
                return found
            found = found + group

    found = run(0.5)
    assert sorted(map(str, found)) == sorted({str(values) for values in found})
    assert len(found) == 4
    assert run(None) == found, "started again, whatever failed"


def test_search_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    config = parse("masking_ratio", ["--preset", "tiny", "--search", "optuna"])
    try:
        import optuna  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(UsageError, match=r"Optuna, which is not installed; pip install 'evilm\[tune\]'"):
            make_plan(config, read_space(config.space), str(tmp_path))
    else:
        plan = make_plan(config, read_space(config.space), str(tmp_path))
        first = next(plan)
        second = plan.send([0.7] * len(first))
        again = make_plan(config, read_space(config.space), str(tmp_path))
        assert next(again) == first
        assert again.send([0.7] * len(first)) == second
