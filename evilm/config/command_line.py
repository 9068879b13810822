"""The command line of every command: preset, then flags over it; one clear line and exit code 2 for a bad one."""

import contextlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import tyro
import yaml
from pydantic import ValidationError

from evilm.config.base import describe, new_name
from evilm.config.presets import defaults
from evilm.config.secrets import public_data, public_text
from evilm.config.stages import STAGES, StageConfig
from evilm.config.training import TrainConfig
from evilm.errors import ConfigError

_EXIT_USAGE = 2


def parse(stage: str, argv: Sequence[str] | None = None) -> Any:
    """The settings of the command `stage` from a command line; ends the process on --help, --dry-run or a bad flag.

    Returns:
        An instance of the command's class in `evilm.config.stages`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments = _in_full(arguments, STAGES[stage].short_flags)
    arguments = _with_values(arguments, STAGES[stage].bare_values)
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        if renamed := new_name(flag.removeprefix("--").replace("-", "_")):
            fail(f"{flag}: it is called --{renamed.replace('_', '-')} now")
    report = io.StringIO()
    try:
        start = defaults(stage, _preset_of(arguments))
        with contextlib.redirect_stderr(report):
            config = tyro.cli(
                STAGES[stage],
                args=arguments,
                default=start,
                prog=f"{STAGES[stage].folder}/{stage}.py",
                description=STAGES[stage].__doc__,
            )
        config = config.resolved() if isinstance(config, TrainConfig) else config
    except ValidationError as error:
        fail(describe(error))
    except ConfigError as error:
        fail(str(error))
    except SystemExit as stop:
        if stop.code:
            fail(_one_line(report.getvalue()))
        raise
    if config.dry_run:
        print(dump(config), end="")
        raise SystemExit(0)
    return config


def fail(message: str) -> NoReturn:
    """One line on stderr and exit code 2: the command line can't be obeyed."""
    print(f"error: {public_text(message)}", file=sys.stderr)
    raise SystemExit(_EXIT_USAGE)


def dump(config: StageConfig) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(public_data(config.model_dump(mode="json")), sort_keys=False)


def _one_line(report: str) -> str:
    """The text of tyro's boxed report in one line, without frames, rules and links."""
    lines = [line.strip("╭╮╰╯│─ ") for line in report.splitlines()]
    text = " ".join(line for line in lines if line)
    text = re.sub(r"\[type=\w+, input_value=([^\]]{,40}), input_type=\w+\]", r"(got \1)", text)
    text = re.sub(r"For further information visit \S+|\[type=[^\]]*\]|^Unrecognized options |^Value error ", "", text)
    text = re.sub(r"Argument helptext:", "Accepted:", text)
    text = re.sub(r"Error parsing \w+: \d+ validation errors? for \w+ Value error, ", "", text)
    text = re.sub(r"For full helptext, (?:run|see) (\S+) --help", r"(all flags: \1 --help)", text)
    return re.sub(r"\s+", " ", text).strip()


def _in_full(arguments: list[str], names: Mapping[str, str]) -> list[str]:
    """`arguments` with the full name of each flag that has a short one."""
    found = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = names.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
        found.append(f"--{name}{equals}{value}" if name else argument)
    return found


def _with_values(arguments: list[str], meanings: Mapping[str, str]) -> list[str]:
    """`arguments` with the value put behind each flag of `meanings` that stands alone."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        found.append(argument)
        meaning = meanings.get(argument.removeprefix("--").replace("-", "_")) if argument.startswith("--") else None
        if meaning and following.startswith("-"):
            found.append(meaning)
    return found


def _preset_of(arguments: Sequence[str]) -> str:
    """The value of --preset, wherever it stands: its values are the defaults of all other flags."""
    for index, argument in enumerate(arguments):
        if argument == "--preset":
            if index + 1 == len(arguments):
                raise ConfigError("--preset needs a value: tiny, gpu, paper, or the path of a YAML file")
            return arguments[index + 1]
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset=")
    return ""
