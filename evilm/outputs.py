"""The folder a door writes: which settings made it, whether it can be continued, and its summary.

`run.json` is written first and `summary.json` last, so: no run.json, nothing there; run.json without summary, an
unfinished run that the same command continues; summary, finished and reused.
"""

import logging
from collections.abc import Sequence
from typing import Any

from evilm import storage
from evilm.config.base import fingerprint, flatten
from evilm.config.runs import Door
from evilm.errors import ConfigError

logger = logging.getLogger(__name__)

CONFIG, SUMMARY = "run.json", "summary.json"
_TRACKING = "mlflow.json"


def open_output(
    config: Door, out: str, inputs: dict[str, str], grows: Sequence[str] = (), scraps: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Claim `out` for this configuration and these inputs.

    Args:
        config: the door's settings; its `identity` decides sameness, so workers and places may change.
        out: where the result goes.
        inputs: fingerprint of each input by name.
        grows: inputs that may have changed, because the door can add to what it made of them. Such an output is left
            as it is, until the door calls `extend_output`.
        scraps: names that by themselves are no result, so that a run that left no more may begin anew.

    Returns:
        The summary of a finished run with the same settings and inputs, to be reused; None where work is to do.

    Raises:
        ConfigError: `out` holds the result of other settings or inputs, and `overwrite` was not given.
    """
    wanted = {"settings": config.identity, "inputs": inputs}
    place = storage.join(out, CONFIG)
    names = set(storage.list_names(out))
    found = _found(place) if CONFIG in names else {}
    is_same, may_grow = found == wanted, _without(found, grows) == _without(wanted, grows)
    if names <= {CONFIG, _TRACKING, *(scraps if found else ())} and not may_grow:
        for name in names & set(scraps):  # of a run that ended on a wrong flag, say: nothing to protect
            storage.delete(storage.join(out, name))
    elif CONFIG in names and not config.overwrite:
        if may_grow:
            summary = storage.join(out, SUMMARY)
            return storage.read_json(summary) if is_same and storage.exists(summary) else None
        raise ConfigError(
            f"{out} was made with other settings ({_difference(found, wanted)}); "
            "use the same settings to continue, another --out, or --overwrite to delete it"
        )
    elif names and CONFIG not in names:
        # Not even with overwrite: what we did not make is not ours to delete.
        raise ConfigError(f"{out} holds files of something else; choose another or an empty --out")
    if config.overwrite:
        storage.delete(out)
    _write(place, wanted)
    return None


def extend_output(config: Door, out: str, inputs: dict[str, str]) -> None:
    """From now on `out` is to hold the result of these inputs, and is unfinished until `close_output`."""
    storage.delete(storage.join(out, SUMMARY))  # first: whoever reads a summary must find the inputs it was made from
    _write(storage.join(out, CONFIG), {"settings": config.identity, "inputs": inputs})


def close_output(out: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Write the summary: from now on `out` counts as finished."""
    storage.write_json(storage.join(out, SUMMARY), summary)
    return summary


def _found(place: str) -> dict[str, Any]:
    data = storage.read_json(place)
    return {name: data.get(name) for name in ("settings", "inputs")}


def _write(place: str, wanted: dict[str, Any]) -> None:
    storage.write_json(place, wanted | {"fingerprint": fingerprint(wanted)})


def _without(claim: dict[str, Any], grows: Sequence[str]) -> dict[str, Any]:
    inputs = claim.get("inputs") or {}
    return claim | {"inputs": {name: value for name, value in inputs.items() if name not in grows}}


def _difference(found: dict[str, Any], wanted: dict[str, Any], most: int = 4) -> str:
    """The first few values in which two configurations differ, `name: there -> here`."""
    old, new = flatten(found), flatten(wanted)
    changed = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)]
    shown = [f"{name.split('.', 1)[-1]}: {old.get(name)!r} there, {new.get(name)!r} now" for name in changed[:most]]
    return "; ".join(shown) + (f"; and {len(changed) - most} more" if len(changed) > most else "")
