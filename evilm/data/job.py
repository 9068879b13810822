"""Jobs over shards: Ray Data does the units of work that are not committed yet; each commits itself, once.

A unit's files carry a digest of their content in their names, so attempts never overwrite each other, and its commit
record, put only where none is, says which of them counts. Kill anything at any time: the same job does the rest.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from evilm import errors, storage
from evilm.data.cluster import connect
from evilm.errors import ClusterError, EvilmError

logger = logging.getLogger(__name__)

_COMMITS, _ATTEMPTS = "commits", "_attempts"
_IO_THREADS = 16
_LOG_EVERY_S = 5.0


def commit(out: str, name: str, data: bytes | None, record: dict[str, Any]) -> None:
    """Publish a unit's file (None: it has none) and its commit record; the first attempt to do so wins."""
    if data is not None:
        digest = hashlib.sha256(data).hexdigest()
        record |= {"file": f"{name}-{digest[:12]}.parquet", "num_bytes": len(data), "sha256": digest}
        storage.write_bytes(storage.join(out, record["file"]), data)
    place = storage.join(out, _COMMITS, f"{name}.json")
    storage.put_if_absent(place, (json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n").encode())


def committed(out: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The commit records that are there, by unit, in the order of `names`."""
    there = set(storage.list_names(storage.join(out, _COMMITS)))
    done = [name for name in names if f"{name}.json" in there]
    with ThreadPoolExecutor(_IO_THREADS) as pool:
        records = pool.map(lambda name: storage.read_json(storage.join(out, _COMMITS, f"{name}.json")), done)
        return dict(zip(done, records, strict=True))


def revoke(out: str, name: str) -> None:
    """Take a unit's commit back, so that it is done again."""
    storage.delete(storage.join(out, _COMMITS, f"{name}.json"))


def clean(out: str, records: dict[str, dict[str, Any]]) -> None:
    """Delete what attempts left behind that were killed or lost the race to commit."""
    kept = {record.get("file") for record in records.values()}
    for name in storage.list_names(out):
        unit = name.split(".", 1)[0].rpartition("-")[0]
        if unit in records and name not in kept:
            storage.delete(storage.join(out, name))
    storage.delete(storage.join(out, _ATTEMPTS))


def begin_attempt(out: str, job: str, name: str, max_failures: int) -> None:
    """Note that an attempt begins; called by the task that does the unit.

    Ray starts a task whose process died again and again, without end; this ends it.

    Raises:
        ClusterError: this unit's process has died more than `max_failures` times in this job.
    """
    place = storage.join(out, _ATTEMPTS, job, name)
    died = len(storage.list_names(place))
    if 0 <= max_failures < died:
        raise ClusterError(
            f"the process working on {name} died {died} times, cluster.max_failures = {max_failures}; most often it is "
            "short of memory: use fewer clips per shard or fewer workers per machine"
        )
    storage.write_bytes(storage.join(place, str(died)), b"")


def run(
    todo: Sequence[str],
    worker: Callable[..., Any],
    min_cpus: float,
    options: dict[str, Any],
    title: str,
) -> Iterator[dict[str, Any]]:
    """Map `worker` over units, one per task or actor call; its result rows as they come in, progress logged.

    Args:
        todo: names of the units.
        worker: function or class for `Dataset.map_batches`; gets `{"name": [unit]}`, returns an `outcome`.
        min_cpus: logical CPUs needed at once.
        options: more arguments of `map_batches`.
        title: what is made, for the progress lines.

    Raises:
        EvilmError: a worker raised it.
    """
    if not todo:
        return
    connect(min_cpus=min_cpus)
    import ray

    items = [{"name": name} for name in todo]
    units = ray.data.from_items(items, override_num_blocks=len(items))
    results = units.map_batches(worker, batch_size=1, **options)
    progress = _Progress(title, len(todo))
    try:
        for row in results.iter_rows():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            progress.add(row)
            yield row
    except Exception as error:  # Ray wraps what a worker raised in several layers of its own
        found = our_error(error)
        if found is None:
            raise
        raise found from None


def outcome(work: Callable[[str], tuple[int, int]], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a worker returns: clips made and quarantined, or the error of ours that ended it.

    Errors travel as data: of what a worker raises, Ray Data keeps only the text, and prints all of its own stack.
    """
    made, failed, error = 0, 0, ("", "")
    try:
        made, failed = work(str(batch["name"][0]))
    except EvilmError as caught:
        error = (type(caught).__name__, str(caught))
    columns = {"num_clips": made, "num_failed": failed, "error": error[0], "message": error[1]}
    return {name: np.array([value]) for name, value in columns.items()}


class _Progress:
    """Lines about how far a job is, not more often than every few seconds."""

    def __init__(self, title: str, num_units: int) -> None:
        self._title, self._num_units = title, num_units
        self._units = self._clips = self._failed = 0
        self._began = time.monotonic()
        self._next = self._began

    def add(self, row: dict[str, Any]) -> None:
        """Count a finished unit."""
        self._units += 1
        self._clips += int(row["num_clips"])
        self._failed += int(row["num_failed"])
        now = time.monotonic()
        if now < self._next and self._units < self._num_units:
            return
        self._next = now + _LOG_EVERY_S
        spent = max(now - self._began, 1e-9)
        left = spent / self._units * (self._num_units - self._units)
        logger.info(
            "%s: shard %d of %d, %d clips, %d quarantined, %.1f clips/s, %.0f s left",
            self._title,
            self._units,
            self._num_units,
            self._clips,
            self._failed,
            (self._clips + self._failed) / spent,
            left,
        )


def our_error(error: BaseException | None) -> EvilmError | None:
    """The error of ours inside what Ray raised: the object where Ray kept it, else made again from Ray's text."""
    text, seen = str(error), set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, EvilmError) and type(error).__module__ == EvilmError.__module__:
            return error
        error = getattr(error, "cause", None) or error.__cause__
    told = re.search(rf"^{re.escape(EvilmError.__module__)}\.(\w+): (.+)$", text, re.MULTILINE)
    return getattr(errors, told[1])(told[2]) if told and hasattr(errors, told[1]) else None
