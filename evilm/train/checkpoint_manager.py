"""Manage checkpoints: write them in the background, register them with Ray, thin them out, find them again.

A checkpoint is `<out>/checkpoints/step_<step>-<attempt>`, complete or not there: locally by a rename, on object stores
because its digests are written last. Old ones are deleted once Ray has registered a newer one. A resumed run takes the
newest complete one whose digests match.
"""

import logging
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from evilm.errors import CheckpointError
from evilm.io import storage
from evilm.io.ownership import check_owner, is_owner
from evilm.model.checkpoint_folder import DIGESTS, verify
from evilm.train.checkpoint_files import Snapshot, write_snapshot

logger = logging.getLogger(__name__)
T = TypeVar("T")

CHECKPOINTS = "checkpoints"
_NAME = re.compile(r"step_(\d{8,})-(\d{3,})")
_REGISTRY = "checkpoint_manager_snapshot.json"  # Ray's list of the checkpoints of one name


def checkpoint_name(step: int, attempt: int) -> str:
    """Name a folder such that a resumed run that makes a step again does not meet the earlier attempt's."""
    return f"step_{step:08d}-{attempt:03d}"


def step_of(name: str) -> int:
    """Return the step in a checkpoint's name."""
    return int(name.removeprefix("step_").partition("-")[0])


def newest_first(out: str) -> list[str]:
    """Return names of all checkpoint folders of an output, complete or not."""
    found = [match for name in storage.list_names(storage.join(out, CHECKPOINTS)) if (match := _NAME.fullmatch(name))]
    return [match[0] for match in sorted(found, key=lambda m: (int(m[1]), int(m[2])), reverse=True)]


def find_intact(out: str, load: Callable[[Path], T]) -> tuple[str, T] | None:
    """Load the newest checkpoint that is intact; each damaged one before it is named in a warning.

    `load` gets the local folder of a verified checkpoint.

    Returns:
        The checkpoint's name and what `load` returned; None where there is none to go on from.
    """
    damaged = 0
    for name in newest_first(out):
        with storage.local_folder(storage.join(out, CHECKPOINTS, name)) as folder:
            try:
                verify(folder, name)
            except CheckpointError as error:
                damaged += 1
                reason = str(error).removesuffix("; start over with --overwrite")
                logger.warning("%s; trying the one before", reason)
                continue
            return name, load(folder)
    if damaged:
        logger.warning("no checkpoint of %s is intact; training starts from the beginning", out)
    return None


def load_named(out: str, name: str, load: Callable[[Path], T]) -> T:
    """Load the checkpoint that rank 0 has chosen."""
    with storage.local_folder(storage.join(out, CHECKPOINTS, name)) as folder:
        return load(folder)


def publish(uri: str, snapshot: Snapshot) -> None:
    """Write a checkpoint to its place, so that it is there whole or not at all."""
    if storage.is_local(uri):
        folder = Path(storage.absolute(uri))
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        storage.write_json(str(temporary / DIGESTS), write_snapshot(temporary, snapshot))
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        os.rename(temporary, folder)
        return
    with tempfile.TemporaryDirectory(prefix="evilm-checkpoint-") as local:
        digests = write_snapshot(Path(local), snapshot)
        for name in digests["files"]:
            storage.put_file(str(Path(local) / name), storage.join(uri, name))
    storage.write_json(storage.join(uri, DIGESTS), digests)


def forget_registry(out: str) -> None:
    """Let Ray begin a new list of checkpoints; ours are found by their digests.

    Ray writes that list in place, so that a kill can leave half of it, and refuses to start with a list that it can't
    read, that names a deleted folder, or that another version of Ray has written.
    """
    storage.delete(storage.join(out, CHECKPOINTS, _REGISTRY))


class CheckpointManager:
    """Saves the checkpoints of one attempt. `save` is called by all workers at the same steps; rank 0 does the work."""

    def __init__(self, out: str, run: int, attempt: int, keep: int, rank: int, restored: str = "") -> None:
        """Manage the checkpoints of one attempt.

        Args:
            run: number of the run that owns it.
            attempt: number of this start of the training.
            keep: newest checkpoints to keep.
            restored: name of the checkpoint that the attempt began from, '' for none.
        """
        self._out, self._run, self._attempt, self._keep, self._rank = out, run, attempt, keep, rank
        self._known = [restored] if restored else []
        self._thread: threading.Thread | None = None
        self.took_s = 0.0
        """Seconds from the last call of `save` until its checkpoint was kept; 0 before there is one."""
        self._closed = threading.Event()
        if rank == 0 and storage.is_local(out):
            for left in Path(storage.absolute(storage.join(out, CHECKPOINTS))).glob(".step_*.tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, snapshot: Callable[[], Snapshot], best: str, before: Callable[[], None]) -> None:
        """Save in the background; a barrier over all workers, but not for the time of writing.

        Args:
            snapshot: copies the training to main memory; called only on rank 0.
            best: name of the best checkpoint so far, which is kept too.
            before: called in the background on rank 0 before the checkpoint is complete: what has to be stored no
                later than it.

        Raises:
            OwnershipError: another run has taken the output folder over.
        """
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        name = checkpoint_name(step, self._attempt)
        if self._rank != 0:
            ray.train.report({}, None, name, CheckpointUploadMode.ASYNC)
            return
        check_owner(self._out, self._run)
        self.finish()  # one at a time, so that slow storage does not fill the memory
        began, copied = time.monotonic(), snapshot()
        place: Any = ray.train.get_context().get_storage()

        def upload(_: Checkpoint, folder: str) -> Checkpoint:
            before()
            check_owner(self._out, self._run)
            publish(storage.join(self._out, CHECKPOINTS, folder), copied)
            path = place.build_checkpoint_path_from_name(folder)
            return Checkpoint(path, filesystem=place.storage_filesystem)

        ray.train.report(
            {"step": step},
            Checkpoint.from_directory(tempfile.mkdtemp(prefix="evilm-empty-")),  # Ray deletes it; `upload` writes ours
            name,
            CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
        )
        self._thread = threading.Thread(target=self._confirm, args=(name, best, began), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the last checkpoint is registered and older ones are deleted."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait for nothing any more."""
        self._closed.set()

    def _confirm(self, name: str, best: str, began: float) -> None:
        """Wait for Ray to register a checkpoint; from then on it counts, and older ones may go."""
        import ray.exceptions
        import ray.train

        try:
            while not self._closed.is_set():
                kept = ray.train.get_all_reported_checkpoints(
                    consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED, timeout_s=5
                )
                if any(item.checkpoint.path.rstrip("/").endswith(name) for item in kept):
                    break
            else:
                return
        except ray.exceptions.RayError as error:  # the group is being ended; the checkpoint exists, unregistered
            logger.warning("checkpoint %s was not registered (%s)", name, " ".join(str(error).split())[:200])
            return
        self.took_s = time.monotonic() - began
        logger.info("saved checkpoint %s", name)
        self._known.append(name)
        self._delete_all_but({*self._known[-self._keep :], best or name})

    def _delete_all_but(self, kept: set[str]) -> None:
        """Delete older checkpoints; those of a later attempt are not ours, should this one outlive its driver."""
        if not is_owner(self._out, self._run):  # after `--overwrite` the attempts of the other run began at 1 again
            return
        for name in newest_first(self._out):
            if name not in kept and int(name.rsplit("-", 1)[1]) <= self._attempt:
                try:
                    storage.delete(storage.join(self._out, CHECKPOINTS, name))
                except OSError as error:
                    logger.warning("could not delete the old checkpoint %s (%s)", name, error)
