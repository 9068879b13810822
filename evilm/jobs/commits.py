"""Units of work and their commits: whoever makes a unit commits it, once.

A unit is known by its name and a key of what is made: the rows and settings, or the frames that are coded. Its files
carry the key and a digest of their content in their names, so attempts never overwrite each other, and its commit
record, put only where none is, says which of them counts. Kill anything at any time: the same job does the rest.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from evilm.errors import ClusterError, HaltedError, ShardError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.io.ownership import check_owner
from evilm.prefetch import map_ahead

_COMMITS, _ATTEMPTS = "commits", "_attempts"
_IO_THREADS = 16
_HALT, _HALT_S = "halt", 1.0


class Tally(NamedTuple):
    """Counts of one unit: clips made, failed, bytes read."""

    num_clips: int
    num_failed: int = 0
    num_lost: int = 0
    """Failed clips whose video could not be fetched."""
    num_bytes: int = 0
    """Read from videos."""
    num_repaired: int = 0
    """1 if its file was lost or damaged before."""


class Unit(NamedTuple):
    """The smallest piece of work, committed at once."""

    name: str
    key: str
    """Digest of what is made; commits of one name and different keys have nothing to do with each other."""

    @property
    def record(self) -> str:
        """Name of the commit record."""
        return f"{self.name}.{self.key[:16]}.json"

    @property
    def tag(self) -> str:
        """Return the beginning of the last part of the names of its files."""
        return self.key[:4]


def make_unit(
    out: str,
    unit: Unit,
    run: int,
    max_failures: int,
    repair: bool,
    make: Callable[[str, dict[str, Any] | None], tuple[dict[str, Any], bool]],
) -> dict[str, Any]:
    """Make a unit and commit it, if it is not committed yet: what a task does, in its own process.

    Args:
        run: number of the run that owns `out`.
        max_failures: how many processes may die of it, as `attempt` counts them.
        repair: read the file of a committed unit, and rewrite it if it is damaged.
        make: writes the unit's file to a local path, given the commit record of a file that was lost or damaged, else
            None; returns what the commit record is to hold, and whether the unit has a file at all.

    Returns:
        The commit record, and `repaired` if it had been committed before.
    """
    before = read_record(out, unit)
    if before and is_sound(out, before, full=repair):
        return before  # found sound, or done by an attempt whose answer was lost with its node
    # What killed processes leave at this place, `clean` removes.
    place = storage.join(out, f"{unit.name}-{unit.tag}attempt")
    with attempt(out, run, unit.name, max_failures), storage.temporary(place) as path:
        with storage.storage_errors(place):
            record, has_file = make(path, before)
        commit_file(out, unit, path if has_file else "", record, run, before)
    return record | {"repaired": bool(before)}


def commit_file(
    out: str, unit: Unit, local: str, record: dict[str, Any], run: int, before: dict[str, Any] | None = None
) -> None:
    """Publish a unit's file, which is moved or uploaded, and its commit record; the first attempt to do so wins.

    Args:
        local: the file on this machine; '' for a unit without one.
        record: what the commit record is to hold beside the file's name, size and digest.
        run: number of the run that owns `out`.
        before: the commit record that is there, of a file that was lost or damaged.

    Raises:
        HaltedError: the job was halted meanwhile.
        OwnershipError: another run has taken the output over.
        ShardError: the file is not the one that was committed before.
    """
    check_owner(out, run)
    digest, size = "", 0
    if local:
        with open(local, "rb") as opened:
            digest, size = hashlib.file_digest(opened, "sha256").hexdigest(), opened.tell()
    if before and before.get("sha256", "") != digest:
        found, expected = (sha256[:12] or "none: no clip" for sha256 in (digest, before.get("sha256", "")))
        raise ShardError(
            f"{unit.name} cannot be repaired: the rebuilt file differs (SHA-256 {found}, expected {expected}), because "
            "its videos or libraries have changed; restore them, or use --overwrite to write all shards again"
        )
    if local:
        file = f"{unit.name}-{unit.tag}{digest[:8]}.parquet"
        record |= {"file": file, "num_bytes": size, "sha256": digest}
        storage.put_file(local, storage.join(out, file))
    if before:
        return
    check_owner(out, run)
    if storage.exists(storage.join(_attempts(out, run), _HALT)):
        raise HaltedError("the job was halted; run the same command again")
    data = (json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n").encode()
    storage.put_if_absent(_place(out, unit), data)


def is_sound(out: str, record: dict[str, Any], full: bool) -> bool:
    """Check that a committed unit's file is there, and in full that it holds what was committed."""
    place = storage.join(out, record["file"]) if record.get("file") else ""
    if not place or not full:
        return not place or storage.exists(place)
    try:
        with storage.local_copy(place) as path, open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == record["sha256"]
    except FileNotFoundError:
        return False


def halt(out: str, run: int) -> None:
    """Stop commits: from now on no task of a run commits; those that are just doing so have time to finish."""
    storage.write_bytes(storage.join(_attempts(out, run), _HALT), b"")
    time.sleep(_HALT_S)


def _place(out: str, unit: Unit) -> str:
    return storage.join(out, _COMMITS, unit.record)


def _attempts(out: str, run: int) -> str:
    return storage.join(out, _ATTEMPTS, f"{run:05d}")


def read_record(out: str, unit: Unit) -> dict[str, Any] | None:
    """Read a unit's commit record; None if it is not committed."""
    try:
        return storage.read_json(_place(out, unit))
    except FileNotFoundError:
        return None


def read_records(out: str, units: Iterable[Unit]) -> Iterator[tuple[Unit, dict[str, Any] | None]]:
    """Yield units with their commit records, in order; only a few records are held at a time."""
    there = set(storage.list_names(storage.join(out, _COMMITS)))
    return map_ahead(lambda unit: (unit, read_record(out, unit) if unit.record in there else None), units, _IO_THREADS)


def committed(out: str, units: Sequence[Unit]) -> dict[str, dict[str, Any]]:
    """Return the existing commit records by name of the unit, in the order of `units`."""
    return {unit.name: record for unit, record in read_records(out, units) if record is not None}


def committed_keys(out: str) -> dict[str, set[str]]:
    """Return the first digits of the keys under which units of any name are committed."""
    found: dict[str, set[str]] = {}
    for name in storage.list_names(storage.join(out, _COMMITS)):
        if name.endswith(".json"):
            unit, _, key = name.removesuffix(".json").rpartition(".")
            found.setdefault(unit, set()).add(key)
    return found


def any_committed(out: str) -> bool:
    """Return whether a unit of any plan is committed."""
    return any(name.endswith(".json") for name in storage.list_names(storage.join(out, _COMMITS)))


def revoke(out: str, unit: Unit, run: int = 0) -> None:
    """Take a unit's commit back, so that it is done again.

    Raises:
        OwnershipError: the output is no longer that of run number `run`, if it is given.
    """
    check_owner(out, run)
    storage.delete(_place(out, unit))


def clean(output: Output, files: dict[Unit, str | None]) -> None:
    """Delete what attempts left behind that were killed or lost the race to commit.

    Files of other keys are deleted only if they were there when this run began: others may be of a run that is taking
    the output over at this moment.

    Args:
        output: the folder, published before.
        files: of every unit the file that counts, if it has one.
    """
    output.check()
    tags, kept = {unit.name: unit.tag for unit in files}, set(files.values())
    for name in storage.list_names(output.out):
        # Units are told by number and dash, so a split that holds a dot is found too.
        unit, _, last = name.rpartition("-")
        if unit in tags and name not in kept and (name in output.before or last.startswith(tags[unit])):
            storage.delete(storage.join(output.out, name))
    records = {unit.record for unit in files}
    for name in storage.list_names(storage.join(output.out, _COMMITS)):
        if name not in records and storage.join(_COMMITS, name) in output.before:
            storage.delete(storage.join(output.out, _COMMITS, name))
    for name in storage.list_names(storage.join(output.out, _ATTEMPTS)):
        if not name.isdigit() or int(name) <= output.run:
            storage.delete(storage.join(output.out, _ATTEMPTS, name))
    if not storage.list_names(storage.join(output.out, _ATTEMPTS)):
        storage.delete(storage.join(output.out, _ATTEMPTS))


@contextmanager
def attempt(out: str, run: int, name: str, max_failures: int) -> Iterator[None]:
    """Note that an attempt at a unit is under way, in the task that makes it.

    Ray starts a task whose process died again and again, without end; this ends it. An attempt that ended with an error
    has not died, nor has one whose node is gone.

    Raises:
        ClusterError: this unit's process has died more than `max_failures` times in this job.
    """
    place, node = storage.join(_attempts(out, run), name), this_node()
    names = storage.list_names(place)
    if 0 <= max_failures < len(names):
        died = sum(is_alive(name.split("-")[1]) for name in names)
        if died > max_failures:
            raise ClusterError(
                f"the process working on {name} died {died} times, cluster.max_failures = {max_failures}; most often "
                "it is short of memory: use fewer clips per shard or fewer workers per machine"
            )
    note = storage.join(place, f"{len(names):04d}-{node}-{uuid.uuid4().hex[:8]}")
    storage.write_bytes(note, b"")
    try:
        yield
    except Exception:  # whatever it was, this process lives, so the attempt has not died; it is raised again
        with suppress(Exception):  # the first error says more
            storage.delete(note)
        raise


def this_node() -> str:
    """Return the id of the Ray node that this task runs on; '' outside of Ray."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def is_alive(node: str) -> bool:
    """Check whether a Ray node is still there; one that nobody knows is, outside of Ray."""
    import ray

    return not ray.is_initialized() or any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())
