"""Presets: YAML files with one section per command, shipped as package data or given by path."""

from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from evilm.config.base import read_yaml, validate
from evilm.config.stages import STAGES, StageConfig, Sweep
from evilm.errors import ConfigError

_JOINED = ("pretrain", "all", *(name for name, stage in STAGES.items() if issubclass(stage, Sweep)))
_UPSTREAM = ("render_corpus", "shard_videos", "build_vocab", "train_tokenizer", "precompute_codes")


def names() -> list[str]:
    """The presets that come with the package."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("evilm.presets").iterdir() if p.name.endswith(".yaml")
    )


def load(preset: str) -> dict[str, Any]:
    """The sections of a preset by name or YAML path; every section is checked against its command.

    Raises:
        ConfigError: no such preset or file, a section that is no command, an unknown setting or one out of range.
    """
    if not preset:
        return {}
    if preset in names():
        text = resources.files("evilm.presets").joinpath(f"{preset}.yaml").read_text()
    elif preset.endswith((".yaml", ".yml")) and Path(preset).is_file():
        text = read_yaml("--preset", preset)
    else:
        raise ConfigError(f"--preset {preset!r} is no preset; use {', '.join(names())}, or the path of a YAML file")
    try:
        sections = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        raise ConfigError(f"--preset {preset}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(sections, dict):
        raise ConfigError(
            f"--preset {preset}: expected one section per command ({', '.join(STAGES)}), found {sections!r}"
        )
    for name, section in sections.items():
        if name not in STAGES:
            raise ConfigError(f"--preset {preset}: no command is called {name!r}; sections: {', '.join(STAGES)}")
        if not isinstance(section, dict):
            raise ConfigError(f"--preset {preset}: section {name!r} must hold settings, found {section!r}")
        if name not in _JOINED:  # checked below, joined with what they build from
            validate(STAGES[name], section, where=f"--preset {preset}, section {name}")
    for name in [name for name in _JOINED if name in sections]:
        validate(STAGES[name], _settings(name, sections), where=f"--preset {preset}, section {name}")
    return sections


def _with_upstream(sections: dict[str, Any]) -> dict[str, Any]:
    """The pretrain section with the other commands' sections as what it builds from."""
    section = dict(sections.get("pretrain", {}))
    build = {name: sections[name] for name in _UPSTREAM if name in sections}
    return section | ({"build": build | section.get("build", {})} if build or "build" in section else {})


def _settings(stage: str, sections: dict[str, Any]) -> dict[str, Any]:
    """The settings of a command in a preset's sections; those of `pretrain`, `all` and sweeps hold other commands' too.

    A sweep's are pretrain's, then those of the section `sweep`, then its own.
    """
    if issubclass(STAGES[stage], Sweep):
        over = [sections.get(name, {}) for name in dict.fromkeys(("sweep", stage))]
        return reduce(_merged, over, _with_upstream(sections))
    if stage == "all":
        return _with_upstream(sections) | {"benchmark": sections.get("benchmark", {})} | sections.get("all", {})
    return _with_upstream(sections) if stage == "pretrain" else sections.get(stage, {})


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over`, section by section."""
    both = {
        name: _merged(under[name], value) if isinstance(value, dict) and isinstance(under.get(name), dict) else value
        for name, value in over.items()
    }
    return under | both


def defaults(stage: str, preset: str) -> StageConfig:
    """The settings of the command `stage` under `preset`, before flags."""
    sections = load(preset)
    return validate(STAGES[stage], {**_settings(stage, sections), "preset": preset}, where=f"--preset {preset}")
