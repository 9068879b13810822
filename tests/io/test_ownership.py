"""One writer per output folder: claims, heartbeats, take-overs, and what readers see, on local disk and on S3."""

import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from evilm.errors import OwnershipError
from evilm.io import ownership, storage
from evilm.io.ownership import check_owner, claim, published


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of a fifth of a second, stale after 1.2 s."""
    monkeypatch.setattr(ownership, "_HEARTBEAT_S", 0.2)
    monkeypatch.setattr(ownership, "STALE_S", 1.2)


def from_elsewhere(out_uri: str, beat_age_s: float) -> None:
    """Make the claim look like that of another machine, silent for some time."""
    entry = storage.join(out_uri, "_runs", "00001.claim.json")
    storage.write_json(entry, storage.read_json(entry) | {"host": "node-7", "ray_job": "raysubmit_1"})
    storage.write_json(storage.join(out_uri, "_runs", "00001.alive.json"), {"at": time.time() - beat_age_s, "beats": 3})


def test_second_writer_is_rejected_with_one_line(out_uri: str) -> None:
    owner = claim(out_uri)
    with pytest.raises(OwnershipError) as caught:
        claim(out_uri)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(rf"is being written by process {os.getpid()} on \S+, started 20\S+, alive \d s ago", message)
    assert "--take-over" in message
    owner.release()
    second = claim(out_uri)
    assert second.number == 2
    second.release()


def test_run_whose_folder_was_deleted_is_not_the_one_that_begins_there(out_uri: str, quick: None) -> None:
    first = claim(out_uri)
    for name in storage.list_names(storage.join(out_uri, "_runs")):
        storage.delete(storage.join(out_uri, "_runs", name))
    with pytest.raises(OwnershipError, match="was deleted while this run wrote it"):
        first.publish("manifest.json", {"by": "the first"})
    second = claim(out_uri)
    assert second.number == first.number
    with pytest.raises(OwnershipError):
        first.publish("manifest.json", {"by": "the first"})
    first.release()
    with pytest.raises(OwnershipError, match="is being written by"):
        claim(out_uri)
    second.publish("manifest.json", {"by": "the second"})
    assert published(out_uri, "manifest.json") == {"by": "the second"}
    second.release()


def test_live_run_is_never_taken_over(out_uri: str, quick: None) -> None:
    owner = claim(out_uri)
    with pytest.raises(OwnershipError, match="alive 0 s ago"):
        claim(out_uri, take_over=True)
    owner.release()


@pytest.mark.parametrize(("age_s", "take_over"), [(3600, False), (0, True)])
def test_silent_run_is_taken_over(out_uri: str, quick: None, age_s: float, take_over: bool) -> None:
    first = claim(out_uri)
    first.publish("manifest.json", {"by": 1})
    first._over.set()  # its machine is gone
    first._thread.join()
    from_elsewhere(out_uri, age_s)
    second = claim(out_uri, take_over)
    assert second.number == 2
    with pytest.raises(OwnershipError, match=rf"was taken over by process {os.getpid()} on .*publishes nothing more"):
        first.publish("manifest.json", {"by": 1})
    with pytest.raises(OwnershipError):
        check_owner(out_uri, 1)
    check_owner(out_uri, 2)
    second.release()


def test_run_of_another_machine_is_replaced_only_by_flag(out_uri: str) -> None:
    owner = claim(out_uri)
    from_elsewhere(out_uri, 5)
    with pytest.raises(
        OwnershipError, match=r"process \d+ on node-7 \(Ray job raysubmit_1\), started .* alive \d+ s ago"
    ):
        claim(out_uri)
    owner.release()


def _claim_and_wait(out_uri: str, ready: Any) -> None:
    claim(out_uri)
    ready.set()
    time.sleep(600)


def test_killed_process_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, out_uri = context.Event(), str(tmp_path / "out")
    process = context.Process(target=_claim_and_wait, args=(out_uri, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(OwnershipError, match=f"process {process.pid} on"):
        claim(out_uri)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    began = time.monotonic()
    owner = claim(out_uri)
    assert time.monotonic() - began < ownership.STALE_S / 2, "nothing was waited for"
    owner.release()


def test_late_writes_of_a_replaced_run_are_ignored(out_uri: str, quick: None) -> None:
    first = claim(out_uri)
    first.publish("manifest.json", {"by": 1})
    first._over.set()
    from_elsewhere(out_uri, 3600)
    second = claim(out_uri)
    assert published(out_uri, "manifest.json") == {"by": 1}, "until there is another one"
    second.publish("manifest.json", {"by": 2})
    # The first one had checked that it was the owner, and was stopped before it wrote.
    storage.write_json(storage.join(out_uri, "_runs", "00001.manifest.json"), {"by": 1})
    storage.write_json(storage.join(out_uri, "manifest.json"), {"by": 1})
    assert published(out_uri, "manifest.json") == {"by": 2}
    storage.delete(storage.join(out_uri, "manifest.json"))
    assert published(out_uri, "manifest.json") is None, "somebody took it away"
    storage.write_json(storage.join(out_uri, "_runs", "00001.manifest.json"), None)
    assert published(out_uri, "manifest.json") == {"by": 2}, "the first run took its own back, not the second's"
    second.publish("manifest.json", None)
    storage.write_json(storage.join(out_uri, "manifest.json"), {"by": 1})
    assert published(out_uri, "manifest.json") is None
    second.release()


def test_folder_without_claims_is_read_directly(tmp_path: Path) -> None:
    assert published(str(tmp_path), "manifest.json") is None
    (tmp_path / "manifest.json").write_text(json.dumps({"by": 0}))
    assert published(str(tmp_path), "manifest.json") == {"by": 0}


def test_one_of_many_simultaneous_claims_wins(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def attempt(_: int) -> ownership.Owner | None:
        try:
            return claim(str(tmp_path / "out"))
        except OwnershipError:
            return None

    with ThreadPoolExecutor(8) as pool:
        owners = [owner for owner in pool.map(attempt, range(8)) if owner]
    assert [owner.number for owner in owners] == [1]
    owners[0].release()
