"""The starts of a training: each writes a numbered record of where it went on from, with how many workers."""

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from evilm.io import storage

_FOLDER = "attempts"


@dataclass(frozen=True)
class Attempt:
    """One start of the workers of a training."""

    number: int
    start_step: int
    parent: int
    """The attempt whose checkpoint it began from; 0 for a fresh start."""
    world: int


def begin_attempt(out: str, start_step: int, restored: str, world: int) -> int:
    """Record a start, and give it the next number.

    Args:
        out: output folder of the training.
        start_step: steps done before.
        restored: name of the checkpoint that it begins from, '' for none.
        world: number of workers.
    """
    number = max((attempt.number for attempt in attempts(out)), default=0) + 1
    record = {"start_step": start_step, "restored": restored, "world": world, "began": round(time.time(), 3)}
    while not storage.put_if_absent(_place(out, number), (json.dumps(record, sort_keys=True) + "\n").encode()):
        number += 1
    return number


def attempts(out: str) -> list[Attempt]:
    """All starts so far, in order."""
    numbers = sorted(int(m[1]) for n in storage.list_names(storage.join(out, _FOLDER)) if (m := _RECORD.fullmatch(n)))
    return [_read(out, number) for number in numbers]


def lineage(out: str) -> list[tuple[int, int, int | None]]:
    """Return which attempt each step of the newest attempt's weights comes from.

    Returns:
        (attempt, first step, step after the last) in order of steps; the last one is open, None.
    """
    known = {attempt.number: attempt for attempt in attempts(out)}
    stretches: list[tuple[int, int, int | None]] = []
    number, end = max(known, default=0), None
    while number in known:
        attempt = known[number]
        if end is None or attempt.start_step < end:
            stretches.append((number, attempt.start_step, end))
            end = attempt.start_step
        number = attempt.parent
    return stretches[::-1]


_RECORD = re.compile(r"(\d{5,})\.json")


def _place(out: str, number: int) -> str:
    return storage.join(out, _FOLDER, f"{number:05d}.json")


def _read(out: str, number: int) -> Attempt:
    record: dict[str, Any] = storage.read_json(_place(out, number))
    parent = int(record["restored"].rsplit("-", 1)[1]) if record["restored"] else 0
    return Attempt(number, record["start_step"], parent, record["world"])
