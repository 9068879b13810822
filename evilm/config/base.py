"""The base of every configuration class: frozen, strict, and hashed the same way everywhere."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from evilm.errors import ConfigError

T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """A section of configuration. Plain data: no tensors, no callables, no defaults that depend on the machine."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def override(self, values: Mapping[str, Any]) -> Self:
        """A copy with dotted keys replaced (`{"optim.lr": 1e-4}`), validated again.

        Raises:
            ConfigError: a key that does not exist, or a value out of range.
        """
        data = self.model_dump()
        for dotted, value in values.items():
            section: Any = data
            *path, leaf = dotted.split(".")
            for name in path:
                section = section.get(name) if isinstance(section, dict) else None
            if not isinstance(section, dict) or leaf not in section:
                if renamed := new_name(dotted):
                    raise ConfigError(f"no setting named {dotted!r}: it is called {renamed!r} now")
                raise ConfigError(
                    f"no setting named {dotted!r}; known: {', '.join(sorted(flatten(self.model_dump())))}"
                )
            section[leaf] = value
        return validate(type(self), data)


RENAMED = {
    "max_words": "max_text_len",
    "accumulate": "gradient_accumulation_steps",
    "feed_threads": "loader_threads",
}
"""Settings by their names in earlier versions; under these they are rejected with the new name."""


def with_new_names(data: Any) -> Any:
    """Return settings that an earlier version wrote, nested or flat, with today's names as keys."""
    if not isinstance(data, dict):
        return data
    return {RENAMED.get(name, name): with_new_names(value) for name, value in data.items()}


def new_name(dotted: str) -> str:
    """Return today's name of a setting of an earlier version, dotted; '' for one that was not renamed."""
    *path, leaf = dotted.split(".")
    return ".".join([*path, RENAMED[leaf]]) if leaf in RENAMED else ""


def validate(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """`data` as a `cls`; pydantic's report becomes one line per fault."""
    try:
        return cls.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(describe(error, where)) from None


def describe(error: ValidationError, where: str = "") -> str:
    """A validation report in one line: which setting, its value, what is accepted."""
    lines = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"]) or "settings"
        if fault["type"] == "extra_forbidden":
            renamed = new_name(name)
            lines.append(f"unknown setting {name!r}" + (f": it is called {renamed!r} now" if renamed else ""))
        elif fault["type"] == "value_error":
            lines.append(str(fault["ctx"]["error"]) if "ctx" in fault else fault["msg"])
        else:
            lines.append(f"{name} = {fault['input']!r}: {fault['msg']}")
    return (f"{where}: " if where else "") + "; ".join(lines)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted keys, for MLflow parameters and error messages."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def fingerprint(data: Any, length: int = 16) -> str:
    """A short hex digest of JSON-able data (or a Config); equal data give equal digests on every machine."""
    if isinstance(data, BaseModel):
        data = data.model_dump(mode="json")
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def without(data: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`data` less the named keys: what is left decides whether two runs are the same."""
    dropped = set(names)
    return {name: value for name, value in data.items() if name not in dropped}


def read_yaml(flag: str, place: str) -> str:
    """The text of a YAML file that a flag names.

    Raises:
        ConfigError: it can't be read, or is no text.
    """
    try:
        return Path(place).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{flag} {place}: not valid YAML, as it is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{flag} {place}: {error.strerror or type(error).__name__}") from None
