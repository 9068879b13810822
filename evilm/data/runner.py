"""Running units of work through Ray Data: tried again where they fail, elsewhere if there is an elsewhere, while the
rest goes on; and lines that tell in clips how far all are."""

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from evilm import errors
from evilm.data.cluster import connect
from evilm.data.job import Tally, is_alive, this_node
from evilm.errors import EvilmError, UnfinishedError

logger = logging.getLogger(__name__)

_LOG_EVERY_S, _REPORT_EVERY_S = 5.0, 2.0
_TURNS = 2
_OF_UNITS = frozenset({"ShardError", "StorageError", "ClusterError"})
"""Errors that may be those of one unit, or of one node; all others end the job."""
_MOST_IN_A_ROW = 8
_SHOWN = 5


class Private(NamedTuple):
    """JSON for units that only the process that makes a unit sees."""

    path: str
    """Of a file on the driver's machine."""
    places: Mapping[str, tuple[int, int]]
    """Of each unit, where its part begins and how long it is."""


def run(
    todo: Sequence[str],
    worker: Callable[..., Any],
    min_cpus: float,
    options: dict[str, Any],
    title: str,
    num_clips: Mapping[str, int] | None = None,
    private: Private | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Map `worker` over units, one per task or actor call; the result rows of those that are done, as they come in.

    A unit that fails is tried once more when all others are done, on other nodes than those on which units failed.

    Args:
        todo: names of the units.
        worker: function or class for `Dataset.map_batches`; gets `{"name": [unit], ...}`, returns an `outcome`.
        min_cpus: logical CPUs needed at once.
        options: more arguments of `map_batches`.
        title: what is made, for the progress lines.
        num_clips: of each unit, to tell progress in clips.
        private: what units are given by `private_part`, and what must not be written anywhere.

    Raises:
        UnfinishedError: some units failed twice; the others are done. Of a single unit it is the unit's own error.
        EvilmError: a worker raised it, and it concerns all units.
    """
    if not todo:
        return
    connect(min_cpus=min_cpus)
    left, num_done, failed = list(todo), 0, dict[str, dict[str, Any]]()
    with _Progress(title, todo, num_clips or {}, private) as progress:
        for turn in range(_TURNS):
            failed, nodes, in_a_row = {}, set[str](), list[str]()
            for row in _map(left, worker, options, progress.desk):
                nodes.add(row["node"])
                if not row["error"]:
                    num_done, in_a_row = num_done + 1, []
                    progress.add(row)
                    yield row
                    continue
                if row["error"] not in _OF_UNITS:
                    raise _error_of(row)
                failed[row["name"]] = row
                logger.warning("%s: %s failed: %s", title, row["name"], row["message"])
                in_a_row.append(row["node"])
                if len(in_a_row) >= _MOST_IN_A_ROW and set(in_a_row) == nodes:
                    raise _unfinished(title, len(todo), num_done, failed, "all ended")
            elsewhere = _elsewhere({row["node"] for row in failed.values()})
            if not failed or turn + 1 == _TURNS or not (num_done or elsewhere):
                break
            left, options = list(failed), options | elsewhere
            logger.info("%s: trying %d shards once more%s", title, len(left), ", on other nodes" if elsewhere else "")
    if failed:
        raise _unfinished(title, len(todo), num_done, failed, "the others are done")


def _map(todo: Sequence[str], worker: Callable[..., Any], options: dict[str, Any], desk: str) -> Iterator[Any]:
    """One pass over units; the rows of their outcomes."""
    import ray

    items = [{"name": name, "desk": desk} for name in todo]
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


def _unfinished(title: str, total: int, num_done: int, failed: Mapping[str, Any], rest: str) -> EvilmError:
    """What to raise for units that failed: the error itself where there is one unit alone."""
    first, *more = failed.values()
    if total == 1 or (not num_done and all(row["message"] == first["message"] for row in more)):
        return _error_of(first)
    told = [f"{name}: {row['message']}" for name, row in list(failed.items())[:_SHOWN]]
    told += [f"and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
    return UnfinishedError(
        f"{title}: {len(failed)} of {total} shards failed, {rest} ({num_done}): {'; '.join(told)}; "
        "run the same command again for what is missing"
    )


def _elsewhere(failed: set[str]) -> dict[str, Any]:
    """Options that keep tasks off nodes; none where no other node is left."""
    import ray

    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in failed]
    bad = sorted(node for node in failed if node and is_alive(node))
    can = [node for node in others if node["Resources"].get("CPU")]
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(bad)})"}} if bad and can else {}


def outcome(work: Callable[[str], tuple[int, ...]], batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a worker returns: the unit and its `Tally`, or the error of ours that ended it.

    Errors travel as data: of what a worker raises, Ray Data keeps only the text, and prints all of its own stack.
    """
    name, tally, error = str(batch["name"][0]), Tally(0), ("", "")
    _Here.unit, _Here.desk = name, str(batch["desk"][0]) if "desk" in batch else ""
    try:
        tally = Tally(*work(name))
    except EvilmError as caught:
        error = (type(caught).__name__, str(caught))
    columns = {"name": name, "error": error[0], "message": error[1], "node": this_node(), **tally._asdict()}
    return {name: np.array([value]) for name, value in columns.items()}


class _Here:
    """What this worker process is doing."""

    unit = desk = ""
    told = 0.0


def report(tally: Tally) -> None:
    """Tell the driver, now and then, how far the unit is that this process makes."""
    now = time.monotonic()
    if not _Here.desk or now - _Here.told < _REPORT_EVERY_S:
        return
    _Here.told = now
    with suppress(Exception):  # progress is no reason to fail
        import ray

        ray.get_actor(_Here.desk).report.remote(_Here.unit, tuple(tally))


def private_part() -> Any:
    """What `run` was given for the unit alone that this process makes; None where there is nothing."""
    if not _Here.desk:
        return None
    import ray

    return ray.get(ray.get_actor(_Here.desk).part.remote(_Here.unit))


class _Desk:
    """An actor beside the driver that tasks talk to: it hears how far they are, and gives them what stays unwritten."""

    def __init__(self, private: Private | None) -> None:
        self._private = private
        self._tallies: dict[str, tuple[int, ...]] = {}

    def report(self, unit: str, tally: tuple[int, ...]) -> None:
        """Hear how far a unit is."""
        self._tallies[unit] = tally

    def read(self) -> dict[str, tuple[int, ...]]:
        """Tell what was heard last of each unit."""
        return self._tallies

    def part(self, unit: str) -> Any:
        """Give a unit's task its part."""
        if self._private is None or unit not in self._private.places:
            return None
        offset, length = self._private.places[unit]
        with open(self._private.path, "rb") as file:
            file.seek(offset)
            return json.loads(file.read(length))


class _Progress:
    """Lines about how far a job is, in clips, every few seconds from the start on."""

    def __init__(self, title: str, todo: Sequence[str], num_clips: Mapping[str, int], private: Private | None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._title, self._num_units = title, len(todo)
        self._num_clips = sum(num_clips[name] for name in todo) if num_clips else 0
        self._done, self._sum = set[str](), Tally(0)
        self._began = time.monotonic()
        self.desk = f"evilm-{uuid.uuid4().hex}"
        here = NodeAffinitySchedulingStrategy(this_node(), soft=False)
        actor: Any = ray.remote(_Desk)
        self._actor = actor.options(num_cpus=0, name=self.desk, scheduling_strategy=here).remote(private)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell_now_and_then, daemon=True, name="progress")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import ray

        self._over.set()
        if kind is None:
            self._tell(self._sum)
        with suppress(Exception):  # of a cluster that is gone
            ray.kill(self._actor)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a finished unit."""
        self._sum = Tally(*(old + int(row[name]) for name, old in self._sum._asdict().items()))
        self._done.add(row["name"])

    def _tell_now_and_then(self) -> None:
        import ray

        while not self._over.wait(_LOG_EVERY_S):
            partly: dict[str, tuple[int, ...]] = {}
            with suppress(Exception):  # the actor has not started yet, or is gone
                partly = ray.get(self._actor.read.remote(), timeout=_LOG_EVERY_S)
            under_way = [tally for unit, tally in partly.items() if unit not in self._done]
            self._tell(Tally(*map(sum, zip(self._sum, *under_way, strict=True))))

    def _tell(self, tally: Tally) -> None:
        spent = max(time.monotonic() - self._began, 1e-9)
        asked = tally.num_clips + tally.num_failed
        share = asked / self._num_clips if self._num_clips else len(self._done) / self._num_units
        logger.info(
            "%s: %s%d of %d shards, %d quarantined, %.1f clips/s%s%s",
            self._title,
            f"{asked:,} of {self._num_clips:,} clips, " if self._num_clips else "",
            len(self._done),
            self._num_units,
            tally.num_failed,
            asked / spent,
            f", {tally.num_bytes / spent / 1e6:.1f} MB/s read" if tally.num_bytes else "",
            f", {as_time(spent / share * (1 - share))} left" if 0 < share < 1 else "",
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
