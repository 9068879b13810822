"""The folder a door writes: which settings made it, whether it can be continued, and its summary.

`run.json` is written first and `summary.json` last, so: no run.json, nothing there; run.json without summary, an
unfinished run that the same command continues; summary, finished and reused.
"""

import logging
from typing import Any

from evilm import storage
from evilm.config.base import fingerprint, flatten
from evilm.config.runs import Door
from evilm.errors import ConfigError

logger = logging.getLogger(__name__)

CONFIG, SUMMARY = "run.json", "summary.json"
_TRACKING = "mlflow.json"


def open_output(config: Door, out: str, inputs: dict[str, str]) -> dict[str, Any] | None:
    """Claim `out` for this configuration and these inputs.

    Args:
        config: the door's settings; its `identity` decides sameness, so workers and places may change.
        out: where the result goes.
        inputs: fingerprint of each input by name.

    Returns:
        The summary of a finished run with the same settings and inputs, to be reused; None where work is to do.

    Raises:
        ConfigError: `out` holds the result of other settings or inputs, and `overwrite` was not given.
    """
    wanted = {"settings": config.identity, "inputs": inputs}
    place = storage.join(out, CONFIG)
    names = set(storage.list_names(out))
    if names and names <= {CONFIG, _TRACKING}:
        pass  # claimed by a run that ended before it made anything, on a wrong flag say: nothing to protect
    elif CONFIG in names and not config.overwrite:
        found = {name: storage.read_json(place).get(name) for name in wanted}
        if found == wanted:
            summary = storage.join(out, SUMMARY)
            return storage.read_json(summary) if storage.exists(summary) else None
        raise ConfigError(
            f"{out} was made with other settings ({_difference(found, wanted)}); "
            "use the same settings to continue, another --out, or --overwrite to delete it"
        )
    elif names and CONFIG not in names:
        # Not even with overwrite: what we did not make is not ours to delete.
        raise ConfigError(f"{out} holds files of something else; choose another or an empty --out")
    if config.overwrite:
        storage.delete(out)
    storage.write_json(place, wanted | {"fingerprint": fingerprint(wanted)})
    return None


def close_output(out: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Write the summary: from now on `out` counts as finished."""
    storage.write_json(storage.join(out, SUMMARY), summary)
    return summary


def _difference(found: dict[str, Any], wanted: dict[str, Any], most: int = 4) -> str:
    """The first few values in which two configurations differ, `name: there -> here`."""
    old, new = flatten(found), flatten(wanted)
    changed = [n for n in sorted(old.keys() | new.keys()) if old.get(n) != new.get(n)]
    shown = [f"{name.split('.', 1)[-1]}: {old.get(name)!r} there, {new.get(name)!r} now" for name in changed[:most]]
    return "; ".join(shown) + (f"; and {len(changed) - most} more" if len(changed) > most else "")
