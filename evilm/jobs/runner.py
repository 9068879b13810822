"""Run units of work through Ray Data: retry those that fail, elsewhere if there are other nodes, and log progress."""

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from evilm import errors
from evilm.cluster import connect
from evilm.console import as_time
from evilm.errors import AccessError, EvilmError, UnfinishedError
from evilm.jobs.commits import Tally, is_alive, this_node

logger = logging.getLogger(__name__)

_LOG_EVERY_S, _REPORT_EVERY_S = 5.0, 2.0
_TURNS = 2
_OF_UNITS = frozenset({"ShardError", "StorageError", "ClusterError", "AccessError"})
"""Errors that may be those of one unit, or of one node; all others end the job."""
_MOST_IN_A_ROW = 8
_SHOWN = 5


class PrivateData(NamedTuple):
    """A file of JSON that is never published; each unit's process reads the record of its own unit."""

    path: str
    """File on the driver's machine."""
    records: Mapping[str, tuple[int, int]]
    """Offset and length of each unit's record, in bytes."""


def run(
    todo: Sequence[str],
    worker: Callable[..., Any],
    min_cpus: float,
    options: dict[str, Any],
    title: str,
    num_clips: Mapping[str, int] | None = None,
    private: PrivateData | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Map `worker` over units, one per task or actor call; yield the rows of finished units as they come in.

    Failed units are retried once after all others have finished, on nodes where no unit failed if there are any. After
    eight failures in a row on all nodes that have finished a unit, all that is left is made on the others at once;
    without others the job ends.

    Args:
        todo: names of the units.
        worker: function or class for `Dataset.map_batches`; gets `{"name": [unit], ...}`, returns an `outcome`.
        min_cpus: logical CPUs needed at once.
        options: more arguments of `map_batches`.
        title: what is made, for the progress lines.
        num_clips: clips of each unit, to log progress in clips.
        private: secrets that the tasks fetch with `read_private`, since they must not be written to plans or shards.

    Raises:
        UnfinishedError: some units failed twice; the others are done. A job of one unit raises that unit's own error.
        EvilmError: a worker raised an error that concerns all units.
    """
    if not todo:
        return
    connect(min_cpus=min_cpus)
    left, failed = list(todo), dict[str, Any]()
    with _Progress(title, todo, num_clips or {}, private) as progress:
        for turn in range(1, _TURNS + 1):
            failed = yield from _run_once(title, left, worker, options, progress)
            elsewhere = _elsewhere({row["node"] for row in failed.values()}, options)
            left = [name for name in left if name not in progress.done]
            if len(left) > len(failed) and (turn == _TURNS or not elsewhere):
                raise _unfinished(title, len(todo), len(progress.done), failed, "stopping early")
            if not failed or turn == _TURNS or not (progress.done or elsewhere):
                break
            options, where = options | elsewhere, "on other nodes" if elsewhere else "once more"
            logger.info("%s: %d shards failed; making %d %s", title, len(failed), len(left), where)
    if failed:
        raise _unfinished(title, len(todo), len(progress.done), failed)


def _run_once(
    title: str, todo: Sequence[str], worker: Callable[..., Any], options: dict[str, Any], progress: "_Progress"
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Run units until all are tried or too many fail in a row; yield the rows of finished ones, return the failed."""
    failed, nodes, in_a_row = dict[str, Any](), set[str](), list[str]()
    with closing(_map(todo, worker, options, progress.server)) as rows:
        for row in rows:
            nodes.add(row["node"])
            if not row["error"]:
                in_a_row = []
                progress.add(row)
                yield row
                continue
            if row["error"] not in _OF_UNITS:
                raise _error_of(row)
            logger.warning("%s: %s failed: %s", title, row["name"], row["message"])
            failed[row["name"]], in_a_row = row, [*in_a_row, row["node"]]
            if len(in_a_row) >= _MOST_IN_A_ROW and set(in_a_row) == nodes:
                break
    return failed


def _map(
    todo: Sequence[str], worker: Callable[..., Any], options: dict[str, Any], server: str
) -> Generator[Any, None, None]:
    """Yield the rows of one pass over units."""
    import ray

    items = [{"name": name, "server": server} for name in todo]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(worker, batch_size=1, **options)
    try:
        yield from results.iter_rows()
    except Exception as error:  # Ray wraps what a worker raised in several layers of its own
        found = our_error(error)
        if found is None:
            raise
        raise found from None


def _error_of(row: Mapping[str, Any]) -> EvilmError:
    return getattr(errors, row["error"])(row["message"])


def _unfinished(title: str, total: int, num_done: int, failed: Mapping[str, Any], note: str = "") -> EvilmError:
    """Return the error for failed units: the unit's own where the job has only one unit, or all failed alike."""
    first, *more = failed.values()
    is_access = bool(note) and all(row["error"] == AccessError.__name__ for row in failed.values())
    if is_access or total == 1 or (not num_done and all(row["message"] == first["message"] for row in more)):
        return _error_of(first)
    listed = [f"{name}: {row['message']}" for name, row in list(failed.items())[:_SHOWN]]
    listed += [f"and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
    return UnfinishedError(
        f"{title}: {len(failed)} of {total} shards failed, {num_done} are done{f', {note}' if note else ''}: "
        f"{'; '.join(listed)}; run the same command again for the rest"
    )


def _elsewhere(failed: set[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that keep tasks off these nodes; none if no other node is left that is large enough."""
    import ray

    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in failed]
    bad = sorted(node for node in failed if node and is_alive(node))
    needed = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0), "memory": options.get("memory", 0)}
    can = [node for node in others if all(node["Resources"].get(name, 0) >= n for name, n in needed.items())]
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(bad)})"}} if bad and can else {}


def outcome(work: Callable[[str], tuple[int, ...]], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return what a worker returns: the unit and its `Tally`, or the error of ours that ended it.

    Errors travel as data: of what a worker raises, Ray Data keeps only the text, and prints all of its own stack.
    """
    name, tally, error = str(batch["name"][0]), Tally(0), ("", "")
    _Task.unit, _Task.server = name, str(batch["server"][0]) if "server" in batch else ""
    try:
        tally = Tally(*work(name))
    except EvilmError as caught:
        error = (type(caught).__name__, str(caught))
    columns = {"name": name, "error": error[0], "message": error[1], "node": this_node(), **tally._asdict()}
    return {name: np.array([value]) for name, value in columns.items()}


class _Task:
    """The unit that this worker process is making, and the actor of its job."""

    unit = server = ""
    reported = 0.0


def report_progress(tally: Tally) -> None:
    """Send the progress of this process' unit to the driver, every few seconds at most."""
    now = time.monotonic()
    if not _Task.server or now - _Task.reported < _REPORT_EVERY_S:
        return
    _Task.reported = now
    with suppress(Exception):  # progress is no reason to fail
        import ray

        ray.get_actor(_Task.server).report.remote(_Task.unit, tuple(tally))


def read_private() -> Any:
    """Fetch the private record of this process' unit; None if it has none."""
    if not _Task.server:
        return None
    import ray

    return ray.get(ray.get_actor(_Task.server).part.remote(_Task.unit))


class _JobServer:
    """Actor on the driver's node that collects progress from tasks and serves their private records."""

    def __init__(self, private: PrivateData | None) -> None:
        self._private = private
        self._tallies: dict[str, tuple[int, ...]] = {}

    def report(self, unit: str, tally: tuple[int, ...]) -> None:
        """Store the progress of a unit."""
        self._tallies[unit] = tally

    def read(self) -> dict[str, tuple[int, ...]]:
        """Return the last progress of each unit."""
        return self._tallies

    def part(self, unit: str) -> Any:
        """Return the private record of a unit; None if it has none."""
        if self._private is None or unit not in self._private.records:
            return None
        offset, length = self._private.records[unit]
        with open(self._private.path, "rb") as file:
            file.seek(offset)
            return json.loads(file.read(length))


class _Progress:
    """Logs the progress of a job, in clips, every few seconds from its start."""

    def __init__(
        self, title: str, todo: Sequence[str], num_clips: Mapping[str, int], private: PrivateData | None
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._title, self._num_units = title, len(todo)
        self._num_clips = sum(num_clips[name] for name in todo) if num_clips else 0
        self.done, self._sum = set[str](), Tally(0)
        self._began = time.monotonic()
        self.server = f"evilm-{uuid.uuid4().hex}"
        here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
        actor: Any = ray.remote(_JobServer)
        self._actor = actor.options(num_cpus=0, name=self.server, scheduling_strategy=here).remote(private)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._log_regularly, daemon=True, name="progress")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import ray

        self._over.set()
        if kind is None:
            self._log(self._sum)
        with suppress(Exception):  # of a cluster that is gone
            ray.kill(self._actor)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a finished unit."""
        self._sum = Tally(*(old + int(row[name]) for name, old in self._sum._asdict().items()))
        self.done.add(row["name"])
        if row["num_repaired"]:
            logger.info("%s: the file of %s was lost or damaged and was rewritten", self._title, row["name"])

    def _log_regularly(self) -> None:
        import ray

        while not self._over.wait(_LOG_EVERY_S):
            partly: dict[str, tuple[int, ...]] = {}
            with suppress(Exception):  # the actor has not started yet, or is gone
                partly = ray.get(self._actor.read.remote(), timeout=_LOG_EVERY_S)
            under_way = [tally for unit, tally in partly.items() if unit not in self.done]
            self._log(Tally(*map(sum, zip(self._sum, *under_way, strict=True))))

    def _log(self, tally: Tally) -> None:
        spent = max(time.monotonic() - self._began, 1e-9)
        asked = tally.num_clips + tally.num_failed
        share = asked / self._num_clips if self._num_clips else len(self.done) / self._num_units
        logger.info(
            "%s: %s%d of %d shards, %d quarantined, %.1f clips/s%s%s",
            self._title,
            f"{asked:,} of {self._num_clips:,} clips, " if self._num_clips else "",
            len(self.done),
            self._num_units,
            tally.num_failed,
            asked / spent,
            f", {tally.num_bytes / spent / 1e6:.1f} MB/s read" if tally.num_bytes else "",
            f", {as_time(spent / share * (1 - share))} left" if 0 < share < 1 else "",
        )


def our_error(error: BaseException | None) -> EvilmError | None:
    """Return our error inside what Ray raised: the object if Ray kept it, else one built from Ray's text."""
    text, seen = str(error), set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, EvilmError) and type(error).__module__ == EvilmError.__module__:
            return error
        error = getattr(error, "cause", None) or error.__cause__
    match = re.search(rf"^{re.escape(EvilmError.__module__)}\.(\w+): (.+)$", text, re.MULTILINE)
    return getattr(errors, match[1])(match[2]) if match and hasattr(errors, match[1]) else None
