"""Find an implementation by name: a built-in one, one of an installed package, or `module:attribute`.

Nothing is registered by a call, since workers are other processes: the name alone must lead to the code in each.
"""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from evilm.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations of one protocol by name."""

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        """Declare a kind of implementation.

        Args:
            what: its name in errors, such as "video tokenizer".
            group: entry-point group for other packages, such as "evilm.video_tokenizers".
            built_in: `module:attribute` of our own ones, by name.
        """
        self._what, self._group, self._built_in = what, group, dict(built_in)

    def names(self) -> list[str]:
        """List the names of installed implementations, sorted, then of the built-in ones in declared order."""
        installed = sorted({point.name for point in entry_points(group=self._group)} - self._built_in.keys())
        return [*installed, *self._built_in]

    def __contains__(self, name: str) -> bool:
        return ":" in name or name in self.names()

    def get(self, name: str) -> T:
        """Load an implementation by its name, one of `names`, or by `module:attribute`.

        Raises:
            ConfigError: there is none with that name, or its module can't be imported.
        """
        place = self._built_in.get(name, name)
        if ":" not in place:
            found = [point.value for point in entry_points(group=self._group, name=name)]
            if not found:
                raise ConfigError(
                    f"{name!r} is not a {self._what}; use {', '.join(self.names())}, or module:attribute of your own"
                )
            place = found[0]
        module, attribute = place.split(":", 1)
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self._what} {name!r}: {error}; it must be importable on every node") from None
