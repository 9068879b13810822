"""Checkpoints of a run: the newest intact one is found, the last and the best are kept, none is there in part."""

import json
import logging
from pathlib import Path

import pytest

from evilm.io import ownership, storage
from evilm.train.checkpoint_files import take_snapshot, verify
from evilm.train.checkpoint_manager import CheckpointManager, find_intact, newest_first, publish
from helpers.flaky_store import FlakyStore
from helpers.tiny_training import fresh_module, train_module


def _published(out: str, *names: str) -> None:
    module, optimizer = fresh_module()
    train_module(module, optimizer, range(1))
    for name in names:
        publish(storage.join(out, "checkpoints", name), take_snapshot(module, optimizer, {"step": name}))


def test_newest_intact_checkpoint_is_found(out_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    assert find_intact(out_uri, _state) is None, "there is none: a fresh start"
    names = ["step_00000004-001", "step_00000008-001", "step_00000008-002", "step_00000012-002"]
    _published(out_uri, *names)
    assert newest_first(out_uri) == names[::-1]
    storage.write_bytes(storage.join(out_uri, "checkpoints", names[3], "weights.safetensors"), b"half of it")
    storage.delete(storage.join(out_uri, "checkpoints", names[2], "digests.json"))  # as a kill leaves an upload
    with caplog.at_level(logging.WARNING, "evilm"):
        assert find_intact(out_uri, _state) == (names[1], names[1])
    said = [record.getMessage() for record in caplog.records if record.name.startswith("evilm")]
    first, second = dict.fromkeys(said)  # pytest hears them twice where another test's logger lets them through
    assert f"{names[3]} can't be used: weights.safetensors has" in first
    assert f"{names[2]} can't be used: digests.json is missing" in second
    assert "--overwrite" not in first + second


def _state(folder: Path) -> str:
    return json.loads((folder / "state.json").read_text())["step"]


def test_last_and_best_checkpoints_are_kept(out_uri: str) -> None:
    names = [f"step_{step:08d}-002" for step in (4, 8, 12, 16)]
    _published(out_uri, "step_00000002-001", *names, "step_00000020-003")
    manager = CheckpointManager(out_uri, run=0, attempt=2, keep=2, rank=0)
    manager._delete_all_but({*names[-2:], names[0]})
    left = ["step_00000020-003", names[3], names[2], names[0]]
    assert newest_first(out_uri) == left, "those of a later attempt are not touched"
    with storage.local_folder(storage.join(out_uri, "checkpoints", names[0])) as folder:
        verify(folder)


def test_run_that_was_taken_over_deletes_no_checkpoint(out_uri: str) -> None:
    """After `--overwrite` the attempts of the new run begin with the first again."""
    first = ownership.claim(out_uri)
    first.release()
    manager = CheckpointManager(out_uri, run=first.number, attempt=1, keep=1, rank=0)
    ownership.claim(out_uri).release()
    _published(out_uri, "step_00000004-001")
    manager._delete_all_but(set())
    assert newest_first(out_uri) == ["step_00000004-001"]


def test_failed_write_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(OSError, match="full"):
        _published(str(tmp_path), "step_00000004-001")
    assert newest_first(str(tmp_path)) == []
    monkeypatch.undo()
    CheckpointManager(str(tmp_path), run=0, attempt=1, keep=1, rank=0)
    assert list((tmp_path / "checkpoints").iterdir()) == [], "the next start sweeps up"


@pytest.mark.faults
def test_transient_upload_error_is_retried() -> None:
    FlakyStore.failures += [ConnectionError("reset"), ConnectionError("reset")]
    _published("flaky://model", "step_00000004-001")
    assert not FlakyStore.failures
    assert find_intact("flaky://model", _state) == ("step_00000004-001", "step_00000004-001")
