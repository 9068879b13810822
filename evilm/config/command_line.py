"""The command line of every command: preset, then flags over it; one clear line and exit code 2 for a bad one.

Flags only name settings. Their values stay texts until pydantic validates them, as it does those of presets and spaces:
a setting means the same, and is refused in the same words, wherever it is given.
"""

import sys
from collections.abc import Sequence
from typing import Any

import yaml

from evilm.config.flags import fail, help_text, make_parser, refuse_unknown, show, with_hyphens
from evilm.config.presets import defaults
from evilm.config.secrets import public_data
from evilm.config.stage_settings import StageConfig
from evilm.config.stages import STAGES
from evilm.config.training import TrainConfig
from evilm.errors import ConfigError


def parse(stage: str, argv: Sequence[str] | None = None) -> Any:
    """Return the settings of the command `stage` from a command line; ends the process on --help, --dry-run, bad flags.

    Returns:
        An instance of the command's class in `evilm.config.stages`.
    """
    arguments = [with_hyphens(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    found, unknown = make_parser(stage, STAGES[stage]()).parse_known_args(arguments)
    given = vars(found)
    wants_help, wants_all = given.pop("help", False), given.pop("help_all", False)
    try:
        config = defaults(stage, given.pop("preset", ""))
        if wants_help or wants_all:
            show(help_text(stage, config, wants_all))
        if unknown:
            refuse_unknown(unknown, stage, config)
        config = config.override(given)
        config = config.resolved() if isinstance(config, TrainConfig) else config
    except ConfigError as error:
        fail(str(error))
    if config.dry_run:
        show(dump(config))
    return config


def dump(config: StageConfig) -> str:
    """Return the resolved settings as YAML."""
    return yaml.safe_dump(public_data(config.model_dump(mode="json")), sort_keys=False)
