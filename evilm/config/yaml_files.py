"""YAML files that flags name: presets and search spaces, shipped with the package or given by path."""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from evilm.errors import ConfigError


def shipped(*folders: str) -> list[str]:
    """Return the names of the YAML files that come with the package, below its folder `presets`."""
    place = resources.files("evilm.presets").joinpath(*folders)
    return sorted(file.name.removesuffix(".yaml") for file in place.iterdir() if file.name.endswith(".yaml"))


def load_yaml(flag: str, given: str, *folders: str) -> Any:
    """Return the content of a YAML file by its name in the package, or by path.

    Args:
        flag: that names it.
        given: its value.
        folders: below the package's `presets`.

    Raises:
        ConfigError: no such file, no valid YAML, or a key that is given twice.
    """
    if given in shipped(*folders):
        text = resources.files("evilm.presets").joinpath(*folders, f"{given}.yaml").read_text()
    elif given.endswith((".yaml", ".yml")):
        text = _read(flag, given)
    else:
        names = ", ".join(shipped(*folders))
        raise ConfigError(f"{flag} {given!r} does not exist; use {names}, or the path of a YAML file")
    return parse_yaml(f"{flag} {given}", text)


def parse_yaml(where: str, text: str) -> Any:
    """Parse YAML text.

    Raises:
        ConfigError: no valid YAML, or a key that is given twice; begins with `where`.
    """
    try:
        return yaml.load(text, _StrictLoader)  # a SafeLoader
    except _DuplicateKey as error:
        raise ConfigError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 2024-99-99
        said = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{where}: not valid YAML ({said})") from None


def _read(flag: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{flag} {path}: not valid YAML, as it is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror or type(error).__name__}") from None


class _DuplicateKey(Exception):
    """A mapping has a key twice."""


class _StrictLoader(yaml.SafeLoader):
    """Rejects keys that are given twice, of which YAML's own loader silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, before merge keys (`<<`) add to it.

        Raises:
            _DuplicateKey: which key, in which lines.
        """
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in first:
                raise _DuplicateKey(f"{key.value!r} is given in line {first[key.value]} and again in line {line}")
            first[key.value] = line
        return node
