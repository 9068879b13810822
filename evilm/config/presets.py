"""Presets: YAML files with one section per command, shipped as package data or given by path."""

from functools import reduce
from typing import Any

from evilm.config.base import Mark, validate
from evilm.config.stage_settings import StageConfig, Upstream
from evilm.config.stages import STAGES
from evilm.config.yaml_files import load_yaml, shipped
from evilm.errors import ConfigError

TASKS = "tasks"
"""Folder of the presets of downstream tasks, named like `tasks/msvd-qa`."""


def names() -> list[str]:
    """Return the presets that come with the package."""
    return shipped()


def load(preset: str) -> dict[str, Any]:
    """Return the sections of a preset by name or YAML path; every section is checked against its command.

    Raises:
        ConfigError: no such preset or file, a section of no command, an unknown setting or one out of range.
    """
    folder, _, name = preset.partition("/")
    place = ("--preset", preset)
    if folder == TASKS and "." not in name:
        place = (f"--preset {TASKS}/NAME, NAME =", name, folder)
    sections = (load_yaml(*place) if preset else None) or {}
    if not isinstance(sections, dict):
        raise ConfigError(
            f"--preset {preset}: expected one section per command ({', '.join(STAGES)}), found {sections!r}"
        )
    for name, section in sections.items():
        if name not in STAGES:
            raise ConfigError(f"--preset {preset}: no command is called {name!r}; sections: {', '.join(STAGES)}")
        if not isinstance(section, dict):
            raise ConfigError(f"--preset {preset}: section {name!r} must hold settings, found {section!r}")
    for name in sorted(sections, key=lambda name: issubclass(STAGES[name], Upstream)):  # which hold other sections
        validate(STAGES[name], _settings(name, sections), where=f"--preset {preset}, section {name}")
    return sections


def _settings(stage: str, sections: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a command in a preset's sections.

    A command that runs other stages takes these stages' sections, without what only their own commands have. `all` and
    sweeps take pretrain's section, a sweep then the section `sweep`, before their own.
    """
    command = STAGES[stage]
    settings: dict[str, Any] = {}
    for name, field in command.model_fields.items():
        if Mark.STAGE in field.metadata:
            known = getattr(field.annotation, "model_fields", {})
            settings[name] = {key: value for key, value in sections.get(name, {}).items() if key in known}
    inherited = [name for name in ("pretrain", "sweep") if issubclass(command, STAGES[name])]
    return reduce(_merged, (sections.get(name, {}) for name in dict.fromkeys([*inherited, stage])), settings)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over`, section by section."""
    both = {
        name: _merged(under[name], value) if isinstance(value, dict) and isinstance(under.get(name), dict) else value
        for name, value in over.items()
    }
    return under | both


def defaults(stage: str, preset: str) -> StageConfig:
    """Return the settings of the command `stage` under `preset`, before flags."""
    sections = load(preset)
    return validate(STAGES[stage], {**_settings(stage, sections), "preset": preset}, where=f"--preset {preset}")
