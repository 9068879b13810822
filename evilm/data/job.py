"""Jobs over shards: Ray Data does the units of work that are not committed yet; each commits itself, once.

A unit's files carry a digest of their content in their names, so attempts never overwrite each other, and its commit
record, put only where none is, says which of them counts. Kill anything at any time: the same job does the rest.
"""

import hashlib
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from evilm import errors, storage
from evilm.data.cluster import connect
from evilm.errors import ClusterError, EvilmError

logger = logging.getLogger(__name__)

_COMMITS, _ATTEMPTS = "commits", "_attempts"
_IO_THREADS = 16
_LOG_EVERY_S = 5.0
_HALT, _HALT_S = "halt", 1.0


class Tally(NamedTuple):
    """What came of a unit."""

    num_clips: int
    num_failed: int = 0
    num_lost: int = 0
    """Failed clips whose video could not be got."""
    num_bytes: int = 0
    """Read from videos."""


def commit(out: str, name: str, data: bytes | None, record: dict[str, Any]) -> None:
    """Publish a unit's file (None: it has none) and its commit record; the first attempt to do so wins."""
    if data is not None:
        digest = hashlib.sha256(data).hexdigest()
        record |= _file_of(name, digest, len(data))
        storage.write_bytes(storage.join(out, record["file"]), data)
    _put_record(out, name, record)


def commit_file(out: str, name: str, local: str, record: dict[str, Any], job: str = "") -> None:
    """As `commit`, with a unit's file that lies on this machine; it is moved or uploaded.

    Raises:
        ClusterError: the job was halted meanwhile.
    """
    with open(local, "rb") as file:
        digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    record |= _file_of(name, digest, size)
    storage.put_file(local, storage.join(out, record["file"]))
    check_going(out, job)
    _put_record(out, name, record)


def halt(out: str, job: str) -> None:
    """From now on no task of a job commits; those that are just doing so have time to finish."""
    storage.write_bytes(storage.join(out, _ATTEMPTS, job, _HALT), b"")
    time.sleep(_HALT_S)


def check_going(out: str, job: str) -> None:
    """Called before a commit.

    Raises:
        ClusterError: the job was halted.
    """
    if job and storage.exists(storage.join(out, _ATTEMPTS, job, _HALT)):
        raise ClusterError("the job was halted; run the same command again")


def attempt_place(out: str, name: str) -> str:
    """Where a unit's file is made; `clean` removes what is left there of processes that were killed."""
    return storage.join(out, f"{name}-attempt")


def _file_of(name: str, digest: str, num_bytes: int) -> dict[str, Any]:
    return {"file": f"{name}-{digest[:12]}.parquet", "num_bytes": num_bytes, "sha256": digest}


def _put_record(out: str, name: str, record: dict[str, Any]) -> None:
    data = (json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n").encode()
    storage.put_if_absent(_place(out, name), data)


def _place(out: str, name: str) -> str:
    return storage.join(out, _COMMITS, f"{name}.json")


def read_record(out: str, name: str) -> dict[str, Any] | None:
    """A unit's commit record; None where it is not committed."""
    try:
        return storage.read_json(_place(out, name))
    except FileNotFoundError:
        return None


def read_records(out: str, names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Units and their commit records, in order; only a few records are held at a time."""
    there = set(storage.list_names(storage.join(out, _COMMITS)))

    def record_of(name: str) -> dict[str, Any] | None:
        return read_record(out, name) if f"{name}.json" in there else None

    with ThreadPoolExecutor(_IO_THREADS) as pool:
        waiting: deque[tuple[str, Future[dict[str, Any] | None]]] = deque()
        for name in names:
            waiting.append((name, pool.submit(record_of, name)))
            if len(waiting) == _IO_THREADS:
                unit, record = waiting.popleft()
                yield unit, record.result()
        for unit, record in waiting:
            yield unit, record.result()


def committed(out: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The commit records that are there, by unit, in the order of `names`."""
    return {name: record for name, record in read_records(out, names) if record is not None}


def any_committed(out: str) -> bool:
    """Whether a unit of any plan is committed."""
    return any(name.endswith(".json") for name in storage.list_names(storage.join(out, _COMMITS)))


def revoke(out: str, name: str) -> None:
    """Take a unit's commit back, so that it is done again."""
    storage.delete(_place(out, name))


def clean(out: str, records: dict[str, dict[str, Any]]) -> None:
    """Delete what attempts left behind that were killed or lost the race to commit.

    Args:
        records: of every unit at least the `file` that counts, if it has one.
    """
    kept = {record.get("file") for record in records.values()}
    for name in storage.list_names(out):
        # Units are told by number and dash, so a split that holds a dot is found too.
        unit = name.rsplit("-", 1)[0]
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
) -> Generator[dict[str, Any], None, None]:
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


def outcome(work: Callable[[str], tuple[int, ...]], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a worker returns: the unit and its `Tally`, or the error of ours that ended it.

    Errors travel as data: of what a worker raises, Ray Data keeps only the text, and prints all of its own stack.
    """
    name, tally, error = str(batch["name"][0]), Tally(0), ("", "")
    try:
        tally = Tally(*work(name))
    except EvilmError as caught:
        error = (type(caught).__name__, str(caught))
    columns = {"name": name, "error": error[0], "message": error[1], **tally._asdict()}
    return {name: np.array([value]) for name, value in columns.items()}


class _Progress:
    """Lines about how far a job is, not more often than every few seconds."""

    def __init__(self, title: str, num_units: int) -> None:
        self._title, self._num_units = title, num_units
        self._units = 0
        self._sum = Tally(0)
        self._began = time.monotonic()
        self._next = self._began

    def add(self, row: dict[str, Any]) -> None:
        """Count a finished unit."""
        self._units += 1
        self._sum = Tally(*(old + int(row[name]) for name, old in self._sum._asdict().items()))
        now = time.monotonic()
        if now < self._next and self._units < self._num_units:
            return
        self._next = now + _LOG_EVERY_S
        spent = max(now - self._began, 1e-9)
        rate = (self._sum.num_clips + self._sum.num_failed) / spent
        read = f", {self._sum.num_bytes / spent / 1e6:.1f} MB/s read" if self._sum.num_bytes else ""
        logger.info(
            "%s: shard %d of %d, %d clips, %d quarantined, %.1f clips/s%s, %s left",
            self._title,
            self._units,
            self._num_units,
            self._sum.num_clips,
            self._sum.num_failed,
            rate,
            read,
            as_time(spent / self._units * (self._num_units - self._units)),
        )


def as_time(seconds: float) -> str:
    """A length of time as people say it: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


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
