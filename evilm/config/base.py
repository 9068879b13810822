"""The base of every configuration class: frozen, strict, and hashed the same way everywhere."""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from evilm.errors import ConfigError

T = TypeVar("T", bound="Config")
_Type = TypeVar("_Type")


class Mark(Enum):
    """Marks that a field carries beside its type."""

    COMMON = "common"
    INCIDENTAL = "incidental"
    STAGE = "stage"


Common = Annotated[_Type, Mark.COMMON]
"""A setting that people change: `--help` shows it, others only `--help-all`."""
Incidental = Annotated[_Type, Mark.INCIDENTAL]
"""A setting that does not decide what the result is: a path, resources, reporting. It may change between two runs."""
Stage = Annotated[_Type, Mark.STAGE, Mark.INCIDENTAL]
"""Settings of another stage that the command runs: a section of a preset, and `--set`, but no flags. The result depends
on them through the fingerprints of its inputs."""


RECORDED = {"decode_timeout_s": 60.0}
"""Incidental settings that the digests of earlier outputs contain: outputs record these values, whatever is set."""


class Config(BaseModel):
    """A section of configuration. Plain data: no tensors, no callables, no defaults that depend on the machine."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @property
    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the result is: all but `Incidental` fields, as JSON holds them."""
        data = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in RECORDED:
                data[name] = RECORDED[name]
            elif Mark.INCIDENTAL in field.metadata:
                del data[name]
            elif isinstance(value, Config):
                data[name] = value.identity
        return {**data.pop("cluster", {}), **data}  # only `precision` decides; outputs record it at the top level

    def override(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with dotted names replaced (`{"optim.lr": 1e-4}`), validated again.

        Raises:
            ConfigError: a name that does not exist, or a value out of range.
        """
        data = self.model_dump()
        for dotted, value in values.items():
            section: Any = data
            *path, leaf = dotted.split(".")
            for name in path:
                section = section.get(name) if isinstance(section, dict) else None
            if not isinstance(section, dict) or leaf not in section:
                raise ConfigError(no_setting(dotted, flatten(self.model_dump())))
            section[leaf] = value
        return validate(type(self), data)


RENAMED = {
    "max_words": "max_text_len",
    "accumulate": "gradient_accumulation_steps",
    "feed_threads": "loader_threads",
}
"""Settings by their names in earlier versions; under these they are rejected with the new name."""
_FORMER_SECTION = "build."
"""What the names of other stages' settings began with in earlier versions."""


def with_new_names(data: Any) -> Any:
    """Return settings that an earlier version wrote, nested or flat, with today's names as keys."""
    if not isinstance(data, dict):
        return data
    return {RENAMED.get(name, name): with_new_names(value) for name, value in data.items()}


def new_name(dotted: str) -> str:
    """Return today's name of a setting of an earlier version, dotted; '' for one that was not renamed."""
    *path, leaf = dotted.removeprefix(_FORMER_SECTION).split(".")
    name = ".".join([*path, RENAMED.get(leaf, leaf)])
    return name if name != dotted else ""


def no_setting(name: str, known: Iterable[str]) -> str:
    """Return the message for a setting that does not exist: its new name, or known ones that are close to it."""
    if renamed := new_name(name):
        return f"no setting named {name!r}: it is called {renamed!r} now"
    near = ", ".join(close_names(name, known))
    return f"no setting named {name!r}; " + (f"did you mean {near}?" if near else "--dry-run shows all")


def close_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are close to a misspelled one."""
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)


def validate(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Return `data` as a `cls`.

    Raises:
        ConfigError: every fault in one line; begins with `where`.
    """
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        message = "; ".join(_describe(cls, fault) for fault in error.errors())
        raise ConfigError((f"{where}: " if where else "") + message) from None


def _describe(cls: type[Config], fault: Any) -> str:
    """Say which setting is wrong, its value, what is accepted."""
    parts = [str(part) for part in fault["loc"] if isinstance(part, int) or part.isidentifier()]  # no members of unions
    name = ".".join(parts) or "settings"
    if fault["type"] == "extra_forbidden":
        first = next(iter(flatten({name: fault["input"]})), name)  # of an unknown section, the first setting
        return no_setting(first, flatten(cls.model_construct().model_dump()))
    why = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):
        return ".".join([*parts, why])  # a section's own check, whose message begins with the name of a setting in it
    return f"{name} = {fault['input']!r}: {why}"


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level with dotted names, for MLflow parameters and messages."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def fingerprint(data: Any, length: int = 16) -> str:
    """Return a short hex digest of JSON-able data (or a Config); equal data give equal digests on every machine."""
    if isinstance(data, BaseModel):
        data = data.model_dump(mode="json")
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def without(data: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return `data` less the named keys: what is left decides whether two runs are the same."""
    dropped = set(names)
    return {name: value for name, value in data.items() if name not in dropped}
