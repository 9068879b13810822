"""Flags of the commands and their help, from the settings of `evilm.config.stages`."""

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from evilm.config.base import Config, Mark, close_names, flatten, new_name
from evilm.config.secrets import public_text
from evilm.config.stage_settings import StageConfig
from evilm.config.yaml_files import parse_yaml
from evilm.errors import ConfigError

_EXIT_USAGE = 2
_EVERY, _OWN = "every command", "this command"
"""Titles of groups of flags in help; others are those of sections."""
_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}


def fail(message: str) -> NoReturn:
    """End with one line on stderr and exit code 2: the command line cannot be obeyed."""
    print(f"error: {public_text(message)}", file=sys.stderr)
    raise SystemExit(_EXIT_USAGE)


def show(text: str) -> NoReturn:
    """Print a text and end with exit code 0, also where a pipe's reader, such as `head`, has seen enough."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at the end complains
    raise SystemExit(0)


def with_hyphens(argument: str) -> str:
    """Return an argument with hyphens for underscores in the name of its flag."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


class _Parser(argparse.ArgumentParser):
    """Ends with one line on an error."""

    def error(self, message: str) -> NoReturn:
        fail(message.removeprefix("argument "))


class _Set(argparse.Action):
    """Takes `--set NAME=VALUE` for the setting NAME, as its flag would be taken, if it had one; lists are in YAML."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, equals, value = values.partition("=")
        if not equals:
            fail(f"--set {values}: use NAME=VALUE, such as shard_videos.sampling.frame_px=128")
        try:
            value = parse_yaml(f"--set {values}", value) if value.startswith("[") else value
        except ConfigError as error:
            fail(str(error))
        setattr(namespace, name.replace("-", "_"), value)


def make_parser(stage: str, config: StageConfig, show_all: bool = False) -> argparse.ArgumentParser:
    """Return the parser of a command; its help shows the common settings or all, with the values of `config`.

    It finds texts by the dotted names of settings, and leaves out settings that are not given.
    """
    parser = _Parser(
        prog=f"{config.folder}/{stage}.py",
        usage="%(prog)s [--preset NAME|FILE.yaml] [--SETTING VALUE ...] [--set NAME=VALUE ...]",
        description=type(config).__doc__,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=8),
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups = {title: parser.add_argument_group(title) for title in (_EVERY, _OWN)}
    for flags, text in (
        (("-h", "--help"), "Show the settings that people change, and exit."),
        (("--help-all",), "Show all settings of this command, and exit."),
    ):
        groups[_EVERY].add_argument(*flags, action="store_true", help=text)
    groups[_EVERY].add_argument("--set", action=_Set, metavar="NAME=VALUE", help="Change a setting; repeatable.")
    for dotted, section, field, value in _settings(config):
        path, _, name = dotted.rpartition(".")
        title = path or (_EVERY if name in StageConfig.model_fields else _OWN)
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        is_shown = show_all or (Mark.COMMON in field.metadata and not dotted.startswith(config.uncommon))
        if is_shown and path:
            group.description = type(section).__doc__  # argparse shows it even where it shows no flag
        _add_flag(group, dotted, config, field, value, is_shown)
    return parser


def _add_flag(group: Any, dotted: str, config: StageConfig, field: FieldInfo, value: Any, is_shown: bool) -> None:
    """Add the flag of a setting; that of a switch needs no value, and there are two that turn it off."""
    shorts = [f"--{short}" for short, full in config.short_flags.items() if full == dotted]
    bare = "true" if isinstance(value, bool) else config.bare_values.get(dotted)
    group.add_argument(
        *(with_hyphens(flag) for flag in (*shorts, f"--{dotted}")),
        dest=dotted,
        metavar=_metavar(field.annotation),
        nargs="?" if bare else "*" if isinstance(value, tuple) else None,
        const=bare,
        help=f"{field.description} {_default(value)}".replace("%", "%%") if is_shown else argparse.SUPPRESS,
    )
    if isinstance(value, bool):
        path, dot, name = dotted.rpartition(".")
        off = {with_hyphens(flag) for flag in (f"--{path}{dot}no_{name}", f"--no_{dotted}")}
        group.add_argument(*sorted(off), dest=dotted, action="store_const", const="false", help=argparse.SUPPRESS)


def _settings(section: Config, prefix: str = "") -> Iterator[tuple[str, Config, FieldInfo, Any]]:
    """Yield the settings of a command but for those of other stages: dotted name, section, field and value."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not isinstance(value, Config):
            yield f"{prefix}{name}", section, field, value
        elif Mark.STAGE not in field.metadata:
            yield from _settings(value, f"{prefix}{name}.")


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    shown = f"{value:.6g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else value
    return "" if shown in ("", None) else f"(default: {shown})"


def _metavar(kind: Any) -> str:
    """Return what a flag's help says about the type of its value."""
    if kind in _TYPES:
        return _TYPES[kind]
    inner = [argument for argument in get_args(kind) if argument is not type(None)]
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, inner)) + "}" if len(inner) > 1 else str(inner[0])
    if get_origin(kind) in (tuple, Annotated):
        return _metavar(inner[0])
    return "|".join(map(_metavar, inner))


def help_text(stage: str, config: StageConfig, show_all: bool) -> str:
    """Describe the common settings of a command, or all, and how to change others."""
    parser = make_parser(stage, config, show_all)
    more = [] if show_all else ["--help-all shows all settings of this command."]
    if stages := _stages(config):
        more.append(
            f"The stages that it runs ({', '.join(stages)}) have their own sections in a preset file, with the "
            "settings that their --help-all shows; for a single change: --set shard_videos.sampling.frame_px=128."
        )
    more.append("--dry-run prints the values of all settings.")
    example = f"example:\n  python {parser.prog} {config.example}\n"
    return f"{parser.format_help()}\n{example}\n{textwrap.fill(' '.join(more), width=100)}\n"


def _stages(config: StageConfig) -> list[str]:
    """Return the stages whose settings a command holds."""
    return [name for name, field in type(config).model_fields.items() if Mark.STAGE in field.metadata]


def refuse_unknown(unknown: Sequence[str], stage: str, config: StageConfig) -> NoReturn:
    """End with one line that says how a setting is given that has no such flag, or which flags are close."""
    flag, _, value = unknown[0].partition("=")
    if not flag.startswith("--"):
        fail(f"unexpected {unknown[0]!r}; values belong to flags, such as --preset tiny")
    settings = flatten(config.model_dump())
    name = flag[2:].replace("-", "_")
    section, dot, leaf = name.rpartition(".")
    if name not in settings and leaf.startswith("no_"):
        name, value = section + dot + leaf.removeprefix("no_"), "false"
    today = new_name(name) or name
    if today not in settings:
        near = [_spelling(other, "...", config) for other in close_names(today, settings)]
        advice = f"did you mean {', '.join(near)}?" if near else "it is not a setting of this command"
        fail(f"unknown flag {flag}; {advice} (all flags: {config.folder}/{stage}.py --help-all)")
    is_switch = isinstance(settings[today], bool)
    following = [argument for argument in unknown[1:2] if not argument.startswith("--")]
    value = value or ("".join(following) or ("true" if is_switch else "VALUE"))
    spelling = _spelling(today, value, config)
    fail(f"{flag}: " + (f"use {spelling} now" if spelling.startswith("--set") else f"it is called {spelling} now"))


def _spelling(name: str, value: str, config: StageConfig) -> str:
    """Return how a setting is given on the command line."""
    if name.partition(".")[0] in _stages(config):
        return f"--set {name}={value}"
    return with_hyphens(f"--{name}")
