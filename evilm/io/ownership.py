"""One writer per output folder: who writes it, whether that run is alive, and what runs have published.

`<out>/_runs/` is a log. A run claims the next number by a put-if-absent, and writes a heartbeat while it lives. What
readers see (settings, manifest, summary) it publishes under its number; readers take the newest. So whatever a run
writes after it was taken over is never seen, as its number is lower. The files of the same names in `<out>` are copies.
"""

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evilm.errors import OwnershipError
from evilm.io import storage

logger = logging.getLogger(__name__)

FOLDER = "_runs"
_CLAIM, _ALIVE, _ENDED = "claim.json", "alive.json", "ended.json"
_ENTRY = re.compile(r"(\d{5,})\.(.+)")
_HEARTBEAT_S = float(os.environ.get("EVILM_HEARTBEAT_S", "10"))
STALE_S = 6 * _HEARTBEAT_S
"""A run that has been silent for so long counts as dead."""


class Owner:
    """The run that may write an output folder, from `claim` until `release`."""

    def __init__(self, out: str, number: int, record: bytes) -> None:
        self.out, self.number, self._record = out, number, record
        self._beats = 0
        self._over = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()

    def publish(self, name: str, content: Any) -> None:
        """Publish a JSON file in place of the one that readers see; None takes it away.

        Raises:
            OwnershipError: another run has taken the folder over.
        """
        self.check()
        storage.write_json(_place(self.out, self.number, name), content)
        if content is None:
            storage.delete(storage.join(self.out, name))
        else:
            storage.write_json(storage.join(self.out, name), content)

    def check(self) -> None:
        """Check that this run still owns the folder; more than `check_owner` can, which knows only the number.

        Raises:
            OwnershipError: another run has taken it over, or it was deleted.
        """
        check_owner(self.out, self.number)
        if not self._has_claim():
            raise OwnershipError(
                f"{self.out} was deleted while this run wrote it; this run ends and publishes nothing more"
            )

    def _has_claim(self) -> bool:
        """Check that the claim is this run's: in a folder that was deleted, numbers begin again."""
        try:
            return storage.read_bytes(_place(self.out, self.number, _CLAIM)) == self._record
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """End the claim, so that the next run need not wait for the heartbeat to become stale."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            with contextlib.suppress(Exception):  # the store is dead, and the heartbeat will be stale
                if self._has_claim():
                    storage.write_json(_place(self.out, self.number, _ENDED), {"ended": _now()})

    def _live(self) -> None:
        while not self._over.wait(_HEARTBEAT_S):
            try:
                if self._has_claim():
                    self._beat()
            except Exception as error:  # the store may answer again; a run that can't write fails by itself
                logger.warning("no heartbeat could be written to %s: %s", self.out, error)

    def _beat(self) -> None:
        self._beats += 1
        storage.write_json(_place(self.out, self.number, _ALIVE), {"at": time.time(), "beats": self._beats})


def claim(out: str, take_over: bool = False) -> Owner:
    """Become the only writer of `out`.

    A run that has ended, whose process on this machine is gone, or whose heartbeat is stale is followed at once.
    `take_over` waits for a fresh heartbeat to become stale, instead of failing at once.

    Raises:
        OwnershipError: another run is writing there.
    """
    while True:
        number = _newest(_entries(out))
        if number:
            _await_end(out, number, take_over)
        record = (json.dumps(_this_process() | {"id": uuid.uuid4().hex}, sort_keys=True) + "\n").encode()
        if storage.put_if_absent(_place(out, number + 1, _CLAIM), record):
            return Owner(out, number + 1, record)


def check_owner(out: str, number: int) -> None:
    """Check, in any process of run `number`, that it still owns `out`; 0 is a run that claimed nothing.

    Raises:
        OwnershipError: another run has taken it over.
    """
    if number and (last := newest(out)) > number:
        other = storage.read_json(_place(out, last, _CLAIM))
        raise OwnershipError(f"{out} was taken over by {_name(other)}; this run ends and publishes nothing more")


def is_owner(out: str, number: int) -> bool:
    """Check whether no other run has taken `out` over; True for a run that claimed nothing, number 0."""
    return not number or newest(out) <= number


def newest(out: str) -> int:
    """Return the number of the run that claimed `out` last; 0 if none did."""
    return _newest(_entries(out))


def published(out: str, name: str) -> Any:
    """Read the JSON file that was published last under a name; None if there is none.

    Raises:
        ShardError: it is damaged.
    """
    copy, numbers = storage.join(out, name), sorted(number for number, found in _entries(out) if found == name)
    # Whoever deletes a copy takes the result away; but not a run that took back its own, just before it was taken over.
    is_gone = not storage.exists(copy)
    if is_gone and all(storage.read_json(_place(out, number, name)) is not None for number in numbers[:-1]):
        return None
    return storage.read_json(_place(out, numbers[-1], name) if numbers else copy)


def withdrawn(out: str, name: str) -> bool:
    """Check whether the last that a run did with a file which it publishes was to take it away."""
    numbers = [number for number, found in _entries(out) if found == name]
    return bool(numbers) and storage.read_json(_place(out, max(numbers), name)) is None


def _await_end(out: str, number: int, take_over: bool) -> None:
    """Return once a run is over: ended, its process gone, or its heartbeat stale.

    Raises:
        OwnershipError: it is alive.
    """
    if (number, _ENDED) in _entries(out):
        return
    other = storage.read_json(_place(out, number, _CLAIM))
    if _is_gone(other):
        logger.info("%s was being written by %s, whose process is gone; continuing from there", out, _name(other))
        return
    beat, began = _last_beat(out, number), time.monotonic()
    age = time.time() - beat["at"]
    # A beat that looks old may come from a machine whose clock is behind, so the next one is waited for.
    patience = STALE_S if take_over else 2 * _HEARTBEAT_S if age > STALE_S else 0.0
    while _last_beat(out, number) == beat:
        if time.monotonic() - began > patience > 0:
            logger.info("%s was being written by %s, silent for %.0f s; it is taken over", out, _name(other), age)
            return
        if not patience:
            break
        time.sleep(_HEARTBEAT_S / 4)
    raise OwnershipError(
        f"{out} is being written by {_name(other)}, alive {max(time.time() - _last_beat(out, number)['at'], 0):.0f} s "
        f"ago; wait for it or stop it, or choose another --out; if it is dead, --take-over continues after {STALE_S:g} "
        "s without a heartbeat"
    )


def _is_gone(other: dict[str, Any]) -> bool:
    """Check whether a process of this very machine (and container) has ended."""
    mine = _this_process()
    is_here = all(other.get(name) == mine[name] for name in ("host", "boot", "pid_namespace"))
    return is_here and _start_ticks(other["pid"]) != other["start_ticks"]


def _this_process() -> dict[str, Any]:
    """Return what tells this process from all others, and what people want to know of it."""
    return {
        "host": socket.gethostname(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else "",
        "pid": os.getpid(),
        "start_ticks": _start_ticks(os.getpid()),
        "started": _now(),
        "ray_job": os.environ.get("RAY_JOB_SUBMISSION_ID", ""),
    }


def _start_ticks(pid: int) -> str:
    """Return a process's start in ticks since boot; '' if no such process exists."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split(" ")[20:21][0] if _read(f"/proc/{pid}/stat") else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _name(record: dict[str, Any]) -> str:
    job = f" (Ray job {record['ray_job']})" if record["ray_job"] else ""
    return f"process {record['pid']} on {record['host']}{job}, started {record['started']}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _last_beat(out: str, number: int) -> dict[str, Any]:
    try:
        return storage.read_json(_place(out, number, _ALIVE))
    except FileNotFoundError:  # it died, or is just about to write the first one
        return {"at": 0.0, "beats": 0}


def _entries(out: str) -> set[tuple[int, str]]:
    names = storage.list_names(storage.join(out, FOLDER))
    return {(int(match[1]), match[2]) for name in names if (match := _ENTRY.fullmatch(name))}


def _newest(entries: set[tuple[int, str]]) -> int:
    return max((number for number, name in entries if name == _CLAIM), default=0)


def _place(out: str, number: int, name: str) -> str:
    return storage.join(out, FOLDER, f"{number:05d}.{name}")
