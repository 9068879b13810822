"""Presets: YAML files with one section per door, shipped as package data or given by path."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from evilm.config.base import validate
from evilm.config.runs import DOORS, Door
from evilm.errors import ConfigError

_UPSTREAM = ("render_corpus", "shard_videos", "build_vocab", "train_tokenizer", "precompute_codes")


def names() -> list[str]:
    """The presets that come with the package."""
    return sorted(
        p.name.removesuffix(".yaml") for p in resources.files("evilm.presets").iterdir() if p.name.endswith(".yaml")
    )


def load(preset: str) -> dict[str, Any]:
    """The sections of a preset by name or YAML path; every section is checked against its door.

    Raises:
        ConfigError: no such preset or file, a section that is no door, an unknown setting or one out of range.
    """
    if not preset:
        return {}
    if preset in names():
        text = resources.files("evilm.presets").joinpath(f"{preset}.yaml").read_text()
    elif preset.endswith((".yaml", ".yml")) and Path(preset).is_file():
        text = Path(preset).read_text()
    else:
        raise ConfigError(f"--preset {preset!r} is no preset; use {', '.join(names())}, or the path of a YAML file")
    try:
        sections = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"--preset {preset}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(sections, dict):
        raise ConfigError(f"--preset {preset}: expected one section per door ({', '.join(DOORS)}), found {sections!r}")
    for name, section in sections.items():
        if name not in DOORS:
            raise ConfigError(f"--preset {preset}: no door is called {name!r}; sections: {', '.join(DOORS)}")
        if not isinstance(section, dict):
            raise ConfigError(f"--preset {preset}: section {name!r} must hold settings, found {section!r}")
        if name != "pretrain":  # checked below, joined with what it builds from
            validate(DOORS[name], section, where=f"--preset {preset}, section {name}")
    if "pretrain" in sections:
        validate(DOORS["pretrain"], _with_upstream(sections), where=f"--preset {preset}, section pretrain")
    return sections


def _with_upstream(sections: dict[str, Any]) -> dict[str, Any]:
    """The pretrain section with the other doors' sections as what it builds from."""
    section = dict(sections.get("pretrain", {}))
    build = {name: sections[name] for name in _UPSTREAM if name in sections}
    return section | ({"build": build | section.get("build", {})} if build or "build" in section else {})


def defaults(door: str, preset: str) -> Door:
    """The settings of `door` under `preset`, before flags."""
    sections = load(preset)
    data = _with_upstream(sections) if door == "pretrain" else sections.get(door, {})
    return validate(DOORS[door], {**data, "preset": preset}, where=f"--preset {preset}")
