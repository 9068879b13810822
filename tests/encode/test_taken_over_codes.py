"""Two commands that write the same codes: the second is rejected, or takes over from a driver that hangs."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
import s3fs

from evilm.config.stages import PrecomputeCodes
from evilm.encode.encode_job import precompute_codes
from evilm.io import storage
from evilm.shards import CodesManifest, FrameManifest
from helpers.commands import finish, start, wait_for
from helpers.gates import Gate
from helpers.stored_frames import make_tokenizer, store_frames


@pytest.mark.long
@pytest.mark.faults
def test_second_command_is_rejected_or_takes_over(
    ray_local: object, tmp_path: Path, s3_bucket: str, out_uri: str, store_gate: Gate
) -> None:
    frames, there = store_frames(tmp_path / "frames").uri, f"{s3_bucket}/frames"
    make_tokenizer(tmp_path / "tokenizer", FrameManifest.load(frames))
    places = {"tokenizer": str(tmp_path / "tokenizer"), "batch_clips": 3}
    config = PrecomputeCodes(frames=frames, out=str(tmp_path / "alone"), **places)  # type: ignore[arg-type]
    alone = precompute_codes(config.override({"cluster.num_workers": 1}))
    out = f"{out_uri}/{Path(alone['codes']).name}"
    s3fs.S3FileSystem().put(f"{frames}/", f"{there}/", recursive=True)
    flags = [f"--frames={there}", f"--tokenizer={places['tokenizer']}", f"--out={out_uri}", "--batch-clips=3"]
    flags += ["--cluster.num-workers=1", "--tracking.no-enabled"]

    def command(*more: str) -> subprocess.Popen[bytes]:
        return start("precompute_codes", *flags, *more, EVILM_HEARTBEAT_S="1")

    store_gate.shut(".parquet", once=lambda: bool(storage.list_names(f"{out}/commits")))
    first = command()
    wait_for(store_gate.holds, first)
    again = command()
    said = again.communicate(timeout=300)[1].decode()
    assert again.returncode == 1
    assert said.splitlines()[-1].startswith(f"error: {out} is being written by process {first.pid} on ")
    os.kill(first.pid, signal.SIGSTOP)  # as a machine that hangs
    second = command("--take-over")
    wait_for(lambda: "00002.claim.json" in storage.list_names(f"{out}/_runs"), second)
    os.kill(first.pid, signal.SIGCONT)
    store_gate.open()
    said = first.communicate(timeout=300)[1].decode()
    assert first.returncode == 1
    assert f"{out} was taken over by process {second.pid} on " in said
    assert finish(second)["fingerprint"] == alone["fingerprint"] == CodesManifest.load(out).fingerprint
    for shard in CodesManifest.load(out).shards:
        shard.verify(out)
