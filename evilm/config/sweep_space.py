"""The search space of a sweep: settings of pre-training by dotted name, each with a list of values or a range.

objectives.mask_ratio: [0.2, 0.4, 0.6]
optim.lr: {low: 1.0e-5, high: 1.0e-3, log: true}
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from evilm.config.base import Config, flatten, no_setting
from evilm.config.stage_settings import Upstream
from evilm.config.yaml_files import load_yaml, parse_yaml, shipped
from evilm.errors import ConfigError

_MOST_CHECKED = 2000
_FOLDER = "spaces"
_OUR_OWN = {
    "preset": "it belongs to the whole sweep",
    "dry_run": "it belongs to the whole sweep",
    "overwrite": "it belongs to the whole sweep",
    "out": "each trial has its own",
    "root": "name another --root for the whole sweep",
    "tracking": "it belongs to the whole sweep",
    "cluster": "it changes how a trial runs, not its result",
}


@dataclass(frozen=True)
class Choices:
    """Values of a setting, as listed."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return str(list(self.values))


@dataclass(frozen=True)
class Range:
    """An interval of a setting, both ends included."""

    low: float
    high: float
    log: bool = False
    """Drawn evenly in the logarithm."""
    whole: bool = field(default=False, repr=False)
    """Draw whole numbers only; set by `typed`."""

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (" (log)" if self.log else "")

    @property
    def middle(self) -> float:
        """Return a value between the ends, as one is drawn."""
        value = math.sqrt(self.low) * math.sqrt(self.high) if self.log else self.low / 2 + self.high / 2
        return round(value) if self.whole else value


Space = dict[str, Choices | Range]


def read_space(space: str, values: str = "") -> Space:
    """Read a space by name or from a YAML file.

    Args:
        space: name of a space of the package, or a path.
        values: values to use in place of the listed ones, for a space of one setting, separated by commas.

    Raises:
        ConfigError: no such space, or a line of it that is neither values nor a range.
    """
    content = load_yaml("--space", space, _FOLDER)
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"--space {space}: expected lines like `optim.lr: [1e-4, 3e-4]`, found {content!r}")
    if values:
        if len(content) > 1:
            raise ConfigError(f"--values {values}: the space {space} has {len(content)} settings; write a space file")
        content = {name: [parse_yaml("--values", value) for value in values.split(",")] for name in content}
    return {str(name): _axis(f"--space {space}, {name}", axis) for name, axis in content.items()}


def check_space(space: Space, base: Config, seeds: int) -> None:
    """Refuse what no trial could run with, before the first one does: unknown settings, values out of range.

    Raises:
        ConfigError: which setting, which value, what is accepted.
    """
    known = flatten(base.model_dump())
    space = typed(space, base)
    for name in space:
        why = _OUR_OWN.get(name.split(".")[0]) if name != "cluster.precision" else None
        if why:
            raise ConfigError(f"{name} cannot be swept: {why}")
        if name == "schedule.seed" and seeds > 1:
            raise ConfigError(
                "schedule.seed cannot be swept together with --seeds; remove it from the space, or use --seeds 1"
            )
        if name not in known:
            raise ConfigError(no_setting(name, known))
        stage = name.split(".")[0]
        if stage == "train_tokenizer" and getattr(base, "tokenizer", ""):
            raise ConfigError(f"{name} cannot be swept, because --tokenizer fixes the tokenizer; leave out --tokenizer")
        if getattr(base, "codes", "") and (name == "views" or stage in Upstream.model_fields):
            raise ConfigError(f"{name} cannot be swept, because --codes fixes the codes; leave out --codes")
    for values in corners(space):
        try:
            base.override(values)
        except ConfigError as error:
            shown = ", ".join(f"{name} = {value!r}" for name, value in values.items())
            raise ConfigError(f"invalid combination in the space ({shown}): {error}") from None


def check_score(score: str, space: Space, base: Config) -> None:
    """Refuse a score that no evaluation of a pre-training has.

    Raises:
        ConfigError: which there are.
    """
    weights = {task: f"objectives.{task}_weight" for task in ("mlm", "vtm", "mvm")}
    settings = flatten(base.model_dump())
    tasks = [task for task, name in weights.items() if name in space or settings.get(name)]
    known = ["match_auc", "loss", *(f"{task}_{what}" for task in tasks for what in ("loss", "accuracy"))]
    known += ["code_usage"]
    if score not in known:
        raise ConfigError(f"--score {score}: no such held-out metric; use {', '.join(known)}")


def typed(space: Space, base: Config) -> Space:
    """Return the space with whole numbers only in ranges of settings that take no others.

    Raises:
        ConfigError: such a range with an end that is no whole number.
    """
    found = dict(space)
    for name, axis in space.items():
        if isinstance(axis, Range) and _is_whole(name, base):
            if axis.low != int(axis.low) or axis.high != int(axis.high):
                raise ConfigError(f"{name}: {axis} is not a range; the setting takes whole numbers only")
            found[name] = dataclasses.replace(axis, low=int(axis.low), high=int(axis.high), whole=True)
    return found


def _is_whole(name: str, base: Config) -> bool:
    """Return whether the type of a setting has whole numbers and no others; False for one that is not there."""
    *path, leaf = name.split(".")
    section: Any = base
    for part in path:
        section = getattr(section, part, None)
    known = type(section).model_fields.get(leaf) if isinstance(section, Config) else None
    kinds = (get_args(known.annotation) or (known.annotation,)) if known else ()
    return int in kinds and float not in kinds


def corners(space: Space) -> list[dict[str, Any]]:
    """Return every combination of listed values, and of ends and middles of ranges; of a big space, each value once."""
    axes = {
        name: axis.values if isinstance(axis, Choices) else (axis.low, axis.middle, axis.high)
        for name, axis in space.items()
    }
    if math.prod(len(values) for values in axes.values()) <= _MOST_CHECKED:
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [{name: value} for name, values in axes.items() for value in values]


def normal(values: Mapping[str, Any], base: Config) -> dict[str, Any]:
    """Return the values as the config understands them (`1e-4` in YAML is a text), so that equal settings are equal.

    Raises:
        ConfigError: a value that it refuses.
    """
    understood = flatten(base.override(values).model_dump(mode="json"))
    return {name: understood[name] for name in values}


def space_names() -> list[str]:
    """Return the spaces that come with the package."""
    return shipped(_FOLDER)


def _axis(where: str, content: Any) -> Choices | Range:
    if isinstance(content, list) and content:
        return Choices(tuple(content))
    if isinstance(content, dict) and {"low", "high"} <= content.keys() <= {"low", "high", "log"}:
        low, high = (_number(where, content[end]) for end in ("low", "high"))
        log = content.get("log", False)
        if low >= high or not isinstance(log, bool) or (log and low <= 0):
            raise ConfigError(f"{where}: {content} is not a range; low < high, and 0 < low where log is true")
        return Range(low, high, log)
    raise ConfigError(f"{where}: expected a list of values or {{low: .., high: .., log: true}}, found {content!r}")


def _number(where: str, value: Any) -> float:
    try:
        number = float("" if isinstance(value, bool) else value)  # `1e-4` is a text in YAML
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: {value!r} is not a number") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{where}: {str(value)[:40]} is not an end of a range; it must be finite")
    return value if isinstance(value, int) else number
