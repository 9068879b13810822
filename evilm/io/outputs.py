"""The folder that a command writes: which settings made it, who writes it now, and its summary.

`run.json` is published first and `summary.json` last, so: no run.json, nothing there; run.json without summary, an
unfinished run that the same command continues; summary, finished and reused.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from evilm.config.base import RECORDED, fingerprint, flatten, with_new_names
from evilm.config.stage_settings import StageConfig
from evilm.errors import ConfigError, OwnershipError
from evilm.io import ownership, storage

logger = logging.getLogger(__name__)

CONFIG, SUMMARY = "run.json", "summary.json"
_MANIFEST = "manifest.json"
_TRACKING = "mlflow.json"
_FOLDERS_OF_FILES = ("commits",)


class Output:
    """An output folder while a command works on it; a context manager that gives it up at the end."""

    def __init__(
        self,
        config: StageConfig,
        out: str,
        inputs: dict[str, str],
        grows: Sequence[str] = (),
        ignorable: Sequence[str] = (),
        needs: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: (),
    ) -> None:
        """Claim `out` for these settings and inputs, unless it is finished.

        Args:
            config: the command's settings; its `identity` decides sameness, so workers and places may change.
            inputs: fingerprint of each input by name.
            grows: inputs that may have changed, because the command can add to what it made of them. Such an output is
                left as it is, until the command calls `extend`.
            ignorable: files that do not count as a result; a run that left only these may start over.
            needs: returns the names that belong to the result with a summary; it is rebuilt where one is missing.

        Raises:
            ConfigError: `out` holds the result of other settings or inputs, and `overwrite` was not given.
            OwnershipError: another run is writing there.
        """
        self.config, self.out, self.inputs = config, out, inputs
        self._grows, self._ignorable, self._needs = grows, ignorable, needs
        self._owner: ownership.Owner | None = None
        self.before = frozenset[str]()
        """Names of files that were there when this run claimed the folder, also of those one folder below."""
        self.lost: list[str] = []
        """Names that a finished result lacks, which is why it is rebuilt."""
        self.done: dict[str, Any] | None = None
        self.done = self._inspect()
        """The summary of a finished run with the same settings and inputs; None where work is to do."""
        if self.done is None:
            self.claim()
            try:
                self.done = self._inspect()  # another run may have ended meanwhile
                if self.done is None:
                    self._begin()
            except BaseException:
                self._release()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._release()

    @property
    def run(self) -> int:
        """Number of this run among those that wrote the folder; 0 if it writes nothing."""
        return self._owner.number if self._owner else 0

    def claim(self) -> int:
        """Become the one that writes the folder, if this run is not so already; its number.

        Raises:
            OwnershipError: another run is writing there, or has written since this one read the summary.
        """
        if self._owner is None:
            self._owner = ownership.claim(self.out, self.config.take_over)
            if self.done is not None and self._inspect() != self.done:
                self._release()
                raise OwnershipError(f"another run has changed {self.out} meanwhile; run the same command again")
            storage.abort_uploads(self.out)
            self.before = frozenset(self._deep_names())
        return self._owner.number

    def extend(self) -> None:
        """Mark the folder as unfinished, to add the results of these inputs.

        Raises:
            OwnershipError: another run is writing there.
        """
        self.claim()
        self.publish(SUMMARY, None)  # first: whoever reads a summary must find the inputs that it was made from
        self._publish_config()

    def publish(self, name: str, content: Any) -> None:
        """Publish a JSON file of the folder in place of the one that readers see; None takes it away.

        Raises:
            OwnershipError: another run has taken the folder over.
        """
        assert self._owner is not None, "a finished output is claimed before it is changed"
        self._owner.publish(name, content)

    def check(self) -> None:
        """Check that no other run has taken the folder over.

        Raises:
            OwnershipError: one has.
        """
        if self._owner:
            self._owner.check()

    def close(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Publish the summary: from now on the folder counts as finished."""
        self.claim()
        self.publish(SUMMARY, summary)
        return summary

    def _release(self) -> None:
        if self._owner:
            self._owner.release()
            self._owner = None

    def _inspect(self) -> dict[str, Any] | None:
        """Find out what the folder holds; the summary if it is finished."""
        names, found = self._names(), self._found()  # in this order: another run may begin meanwhile
        if CONFIG not in names and not found:
            # What we did not make is not ours to delete; but a run may have been killed while it deleted.
            was_ours = self.config.overwrite and ownership.withdrawn(self.out, CONFIG)
            if names - {_TRACKING} and not was_ours:
                raise ConfigError(
                    f"{self.out} contains files that this command did not write; use an empty or new --out"
                )
            return None
        if self.config.overwrite or not self._may_grow(found):
            if not self.config.overwrite and names - {CONFIG, _TRACKING, *self._ignorable}:
                raise ConfigError(
                    f"{self.out} was made with other settings ({_difference(found, self._wanted)}); "
                    "use the same settings to continue, another --out, or --overwrite to delete it"
                )
            return None
        done = ownership.published(self.out, SUMMARY) if found == self._wanted else None
        done = done and _with_places_now(done, self.out)
        self.lost = [name for name in self._needs(done) if name not in names] if done else []
        if self.lost and not self._owner:  # it is inspected again then
            logger.warning("%s lacks %s; rebuilding it", self.out, ", ".join(self.lost))
        return None if self.lost else done

    def _begin(self) -> None:
        """Clear the folder where it is to begin anew, and publish the settings."""
        names, found = self._names(), self._found()
        if found and not self.config.overwrite and self._may_grow(found):
            return
        if CONFIG in names:
            for name in (SUMMARY, _MANIFEST, CONFIG):
                self.publish(name, None)
        for name in names if self.config.overwrite else names & set(self._ignorable):
            self.check()
            storage.delete(storage.join(self.out, name))
        self._publish_config()

    def _publish_config(self) -> None:
        self.publish(CONFIG, self._wanted | {"fingerprint": fingerprint(self._wanted)})

    @property
    def _wanted(self) -> dict[str, Any]:
        return {"settings": self.config.identity, "inputs": self.inputs}

    def _found(self) -> dict[str, Any]:
        data = ownership.published(self.out, CONFIG)
        if not data:
            return {}
        # A setting that the version which made it did not have counts as its default.
        settings = _filled(with_new_names(data.get("settings") or {}), type(self.config)().identity)
        return {"settings": settings, "inputs": data.get("inputs")}

    def _deep_names(self) -> Iterator[str]:
        for name in self._names():
            yield name
            if name in _FOLDERS_OF_FILES:
                yield from (storage.join(name, file) for file in storage.list_names(storage.join(self.out, name)))

    def _names(self) -> set[str]:
        return set(storage.list_names(self.out)) - {ownership.FOLDER}

    def _may_grow(self, found: dict[str, Any]) -> bool:
        return _without(found, self._grows) == _without(self._wanted, self._grows)


def _with_places_now(summary: dict[str, Any], out: str) -> dict[str, Any]:
    """Return a summary with the places of now, if the output was moved or copied since, maybe with its whole root."""
    old, new = str(summary.get("codes") or summary.get("out") or out).split("/"), out.split("/")
    if old == new:
        return summary
    while old and new and old[-1] == new[-1]:
        old, new = old[:-1], new[:-1]
    before, now = "/".join(old), "/".join(new)

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(each) for name, each in value.items()}
        if isinstance(value, list):
            return [moved(each) for each in value]
        is_below = isinstance(value, str) and f"{value}/".startswith(f"{before}/")
        return now + value[len(before) :] if is_below else value

    return moved(summary) if before else summary


def _filled(found: dict[str, Any], defaults: Mapping[str, object]) -> dict[str, Any]:
    """Fill missing settings, also in sections, from the defaults; those in `RECORDED` always come from them."""
    filled = {**defaults, **found, **{name: default for name, default in defaults.items() if name in RECORDED}}
    for name, value in found.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            filled[name] = _filled(value, default)
    return filled


def _without(claim: dict[str, Any], grows: Sequence[str]) -> dict[str, Any]:
    inputs = claim.get("inputs") or {}
    return claim | {"inputs": {name: value for name, value in inputs.items() if name not in grows}}


def _difference(found: dict[str, Any], wanted: dict[str, Any], most: int = 4) -> str:
    """Return the first few values in which two configurations differ, `name: there -> here`."""
    old, new = flatten(found), flatten(wanted)
    changed = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)]
    shown = [f"{name.split('.', 1)[-1]}: {old.get(name)!r} there, {new.get(name)!r} now" for name in changed[:most]]
    return "; ".join(shown) + (f"; and {len(changed) - most} more" if len(changed) > most else "")
