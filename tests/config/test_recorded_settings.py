"""Settings decide what an output is where their fields say so, and as earlier versions have recorded them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilm.config.base import Config, Mark, fingerprint, flatten
from evilm.config.presets import defaults
from evilm.config.stage_settings import StageConfig, Upstream, recorded_names
from evilm.config.stages import STAGES, RenderCorpus, ShardVideos
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.sweep.trial_folder import make_trials

RECORDED = json.loads((Path(__file__).parent / "recorded_settings.json").read_text())
"""By command: the settings in `run.json` of outputs made with defaults, when no field said what belongs to them."""


@pytest.mark.parametrize("stage", RECORDED)
def test_output_of_the_previous_version_is_reused(stage: str, tmp_path: Path) -> None:
    config = STAGES[stage]()
    with Output(config, str(tmp_path), {}) as output:
        output.close({"made": "before"})
    for file in (tmp_path / "run.json", tmp_path / "_runs" / "00001.run.json"):
        storage.write_json(str(file), storage.read_json(str(file)) | {"settings": RECORDED[stage]})
    with Output(config, str(tmp_path), {}) as output:
        assert output.done == {"made": "before"}


def test_output_made_with_another_time_limit_is_reused(tmp_path: Path) -> None:
    with Output(ShardVideos(), str(tmp_path), {}) as output:
        output.close({"made": "before"})
    for file in (tmp_path / "run.json", tmp_path / "_runs" / "00001.run.json"):
        run = storage.read_json(str(file))
        run["settings"]["sampling"]["decode_timeout_s"] = 600.0
        storage.write_json(str(file), run)
    for seconds in (60, 600, 90):
        config = ShardVideos().override({"sampling.decode_timeout_s": seconds})
        with Output(config, str(tmp_path), {}) as output:
            assert output.done == {"made": "before"}


def test_digests_of_settings_are_unchanged() -> None:
    assert fingerprint(RenderCorpus().identity) == "3f5a1e6a51dd3704"
    assert fingerprint(ShardVideos().identity) == "afda6c20eeadb684"
    values = {"train_tokenizer.arch.codebook.num_codes": 64, "optim.lr": 2e-3}
    (trial,) = make_trials(0, values, 1, "trials")
    assert trial.name == "num_codes=64,lr=0.002-6f7eac-s0"
    assert fingerprint(recorded_names({"train_tokenizer.arch.codebook.num_codes": 64}), 10) == "54e4a1b3cd"


def _fields(section: Config, prefix: str = "", is_incidental: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the settings of a section, and whether they or the section are declared incidental."""
    for name, field in type(section).model_fields.items():
        incidental = is_incidental or Mark.INCIDENTAL in field.metadata
        value = getattr(section, name)
        if isinstance(value, Config):
            yield from _fields(value, f"{prefix}{name}.", incidental)
        else:
            yield f"{prefix}{name}", incidental


@pytest.mark.parametrize("stage", sorted(STAGES.keys() - {"all"}))
def test_identity_holds_all_settings_not_marked_incidental(stage: str) -> None:
    config = STAGES[stage]().override({"views": 2} if stage == "precompute_codes" else {})
    held = set(flatten(config.identity))
    declared = dict(_fields(config))
    decisive = {name.removeprefix("cluster.") for name, incidental in declared.items() if not incidental}
    if "cluster" in type(config).model_fields:
        decisive |= {"precision"}
    decisive |= {"sampling.decode_timeout_s"} if stage == "shard_videos" else set()  # recorded, always as 60 s
    if isinstance(config, Upstream) and type(config) is not STAGES["pretrain"]:  # trials are compared under these
        held = {name for name in held if not name.startswith(("build.", "length.")) and name != "views"}
    if stage in ("shard_videos", "precompute_codes"):
        decisive -= {"precision"}
    assert held == decisive


def test_settings_that_every_command_takes_are_incidental() -> None:
    assert {name for name, incidental in _fields(StageConfig()) if not incidental} == set()


@pytest.mark.parametrize("name", Upstream.model_fields)
def test_upstream_settings_omit_paths_and_tracking(name: str) -> None:
    settings: Any = Upstream.model_fields[name].annotation
    assert not settings.model_fields.keys() & (StageConfig.model_fields.keys() | {"manifest", "videos", "frames"})
    assert not settings.model_fields.keys() & {"vocab", "tokenizer", "codes", "root"}
    assert issubclass(STAGES[name], settings)
    section = getattr(defaults("pretrain", "tiny"), name)
    assert section.identity == defaults(name, "tiny").identity
