"""Decoding in a child process: deadlines, deaths, and going on afterwards."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from video_files import write_video

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError
from evilm.video.child import Decoder
from evilm.video.decode import decode_clip
from evilm.video.reasons import Reason

CONFIG = FramesConfig()
READY = "import sys, os, time; os.write(1, (5).to_bytes(8, 'little') + b'ready'); "


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "evilm.video.child" in " ".join(child.cmdline())]


def test_same_frames_as_here(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Decoder(CONFIG) as decoder:
        assert decoder.decode(str(path), "x") == decode_clip(str(path), "x", CONFIG)
        with pytest.raises(DecodeError, match="missing_file"):
            decoder.decode(str(tmp_path / "b.mp4"), "x")
        assert decoder.decode(str(path), "x").frames


def test_goes_on_after_a_death(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Decoder(CONFIG) as decoder:
        first = decoder.decode(str(path), "x")
        (child,) = children()
        child.kill()
        assert decoder.decode(str(path), "x").frames == first.frames
        assert children() != [child]
    assert not children()


def test_a_child_that_always_dies() -> None:
    with (
        Decoder(CONFIG, [sys.executable, "-c", READY + "sys.stdin.buffer.read(8); os.abort()"]) as decoder,
        pytest.raises(DecodeError) as caught,
    ):
        decoder.decode("/nowhere.mp4", "x")
    assert caught.value.reason == Reason.DECODER_CRASH


def test_a_child_that_hangs() -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", READY + "time.sleep(600)"]
    with (
        Decoder(CONFIG.override({"decode_timeout_s": 0.3}), command) as decoder,
        pytest.raises(DecodeError) as caught,
    ):
        decoder.decode("/nowhere.mp4", "x")
    assert caught.value.reason == Reason.DECODE_TIMEOUT
    assert time.monotonic() - began < 30


def test_child_ends_with_its_parent(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    code = (
        "import os, signal, sys; from evilm.video.child import Decoder; from evilm.config.data import FramesConfig;"
        f"d = Decoder(FramesConfig()); d.decode({str(path)!r}, 'x'); print(d._child.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)
