"""Two commands on one output folder, as when a job is submitted twice: one line for the second, or it goes on."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import s3fs

from evilm.ingest.shard_videos import shard_videos
from evilm.io import storage
from evilm.shards import FrameManifest
from helpers.commands import files_of, kill, start, wait_for
from helpers.gates import Gate
from helpers.small_corpus import SERVED, shard_config

pytestmark = [pytest.mark.faults, pytest.mark.long]
_HELD = SERVED[0]
_FLAGS = [
    "--sampling.row-group-clips=3", "--sampling.shard-clips=2", "--columns.url=url", "--fetch.urls",
    "--fetch.allow-private", "--fetch.timeout-s=3000", "--fetch.deadline-s=3000", "--tracking.no-enabled",
]  # fmt: skip
_PX = "--sampling.frame-px="


@pytest.fixture(scope="module")
def corpus(served_corpus: Path) -> Path:
    """The corpus, one of whose videos a server withholds, and a manifest without its last rows."""
    lines = (served_corpus / "clips.csv").read_text().splitlines()
    (served_corpus / "fewer.csv").write_text("\n".join(lines[:20]) + "\n")
    return served_corpus


def command(corpus: Path, out: str, *flags: str, manifest: str = "clips.csv") -> subprocess.Popen[bytes]:
    places = [f"--manifest={corpus / manifest}", f"--videos={corpus / 'videos'}", f"--out={out}"]
    return start("shard_videos", *places, *_FLAGS, *flags, EVILM_HEARTBEAT_S="1")


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Exit code and the last lines of stdout and stderr."""
    printed, said = (text.decode().splitlines() for text in process.communicate(timeout=500))
    return process.returncode, "".join(printed[-1:]), "".join(said[-1:])


def commits(out: str) -> int:
    return len(storage.list_names(f"{out}/commits"))


def test_second_command_is_rejected_or_takes_over(corpus: Path, out_uri: str, gate: Gate, tmp_path: Path) -> None:
    gate.shut(_HELD)
    first = command(corpus, out_uri, f"{_PX}64", manifest="fewer.csv")
    wait_for(lambda: gate.holds(_HELD) and commits(out_uri) > 0, first)
    for flags, manifest in (
        ([f"{_PX}96", "--overwrite"], "fewer.csv"),  # (a) other settings
        ([f"{_PX}64"], "clips.csv"),  # (b) more rows
        ([f"{_PX}64"], "fewer.csv"),  # the same again
    ):
        code, _, said = ended(command(corpus, out_uri, *flags, manifest=manifest))
        assert code == 1
        assert said.startswith(f"error: {out_uri} is being written by process {first.pid} on ")
        assert ", started 20" in said
        assert " s ago; wait for it or stop it, or choose another --out" in said
    os.kill(first.pid, signal.SIGSTOP)  # as a machine that hangs
    second = command(corpus, out_uri, f"{_PX}96", "--overwrite", "--take-over", manifest="fewer.csv")
    wait_for(lambda: f"{2:05d}.claim.json" in storage.list_names(f"{out_uri}/_runs"), second)
    os.kill(first.pid, signal.SIGCONT)
    gate.open()
    code, _, said = ended(first)
    assert code == 1
    assert f"{out_uri} was taken over by process {second.pid} on " in said
    code, printed, said = ended(second)
    assert code == 0, said
    manifest_there = FrameManifest.load(out_uri)
    assert manifest_there.frame_px == 96
    for shard in manifest_there.shards:
        shard.verify(out_uri)
    config = shard_config(corpus, tmp_path / "alone").override({"manifest": str(corpus / "fewer.csv")})
    values: dict[str, Any] = {"sampling.frame_px": 96, "sampling.shard_clips": 2, "columns.url": "url"}
    alone = shard_videos(config.override(values | {"fetch.urls": True, "fetch.allow_private": True}))
    assert json.loads(printed)["fingerprint"] == alone["fingerprint"] == manifest_there.fingerprint


def test_command_killed_with_its_shell_can_be_repeated(corpus: Path, out_uri: str, gate: Gate, tmp_path: Path) -> None:
    gate.shut(_HELD)
    first = command(corpus, out_uri, f"{_PX}64")
    wait_for(lambda: gate.holds(_HELD) and commits(out_uri) > 0, first)
    before = commits(out_uri)
    kill(first, and_workers=True)
    gate.open()
    code, printed, said = ended(command(corpus, out_uri, f"{_PX}64"))
    assert code == 0, said
    assert json.loads(printed)["num_clips"] == 22
    assert before > 0
    if storage.is_local(out_uri):
        config = shard_config(corpus, tmp_path / "alone", **{"sampling.shard_clips": 2, "columns.url": "url"})
        shard_videos(config.override({"fetch.urls": True, "fetch.allow_private": True}))
        assert files_of(Path(out_uri)) == files_of(tmp_path / "alone")
    else:
        s3fs.S3FileSystem.clear_instance_cache()
        assert not [name for name in storage.list_names(out_uri) if "attempt" in name]


@pytest.mark.parametrize("flags", [[f"{_PX}64"], [f"{_PX}96", "--overwrite"]], ids=["same", "overwrite"])
def test_second_command_is_rejected_while_the_first_plans(
    corpus: Path, s3_bucket: str, store_gate: Gate, flags: list[str], tmp_path: Path
) -> None:
    out, manifest = tmp_path / "out", f"{s3_bucket}/clips.csv"
    storage.write_bytes(manifest, (corpus / "clips.csv").read_bytes())
    store_gate.shut("clips.csv", once=lambda: (out / "_runs" / "00001.claim.json").exists())
    first = command(corpus, str(out), f"{_PX}64", f"--manifest={manifest}")
    wait_for(store_gate.holds, first)
    assert not commits(str(out))
    code, _, said = ended(command(corpus, str(out), *flags))
    assert code == 1
    assert said.startswith(f"error: {out} is being written by process {first.pid} on ")
    store_gate.open()
    code, printed, said = ended(first)
    assert code == 0, said
    assert json.loads(printed)["num_clips"] == 22
    assert FrameManifest.load(str(out)).frame_px == 64
