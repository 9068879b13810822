"""Decoding in a child process: deadlines, deaths, and going on afterwards."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError, EvilmError
from evilm.video.decode import decode_clip
from evilm.video.decoder_process import Decoder
from evilm.video.reasons import RejectReason
from helpers.video_files import write_video

CONFIG = FramesConfig()

pytestmark = pytest.mark.faults
READY = "import sys, os, time; os.write(1, (5).to_bytes(8, 'little') + b'ready'); "


def decoders() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children() if "evilm.video.decoder_process" in " ".join(child.cmdline())
    ]


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """The decoding children that were started since; those of earlier tests' models may still stand."""
    before = set(decoders())
    return lambda: [child for child in decoders() if child not in before]


def test_child_decodes_the_same_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Decoder(CONFIG) as decoder:
        assert decoder.decode(str(path), "x") == decode_clip(str(path), "x", CONFIG)
        with pytest.raises(DecodeError, match="missing_file"):
            decoder.decode(str(tmp_path / "b.mp4"), "x")
        assert decoder.decode(str(path), "x").frames


def test_killed_child_is_replaced(tmp_path: Path, children: Callable[[], list[psutil.Process]]) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Decoder(CONFIG) as decoder:
        first = decoder.decode(str(path), "x")
        (child,) = children()
        child.kill()
        assert decoder.decode(str(path), "x").frames == first.frames
        assert children() != [child]
    assert not children()


def test_dying_child_is_a_decoder_crash() -> None:
    with (
        Decoder(CONFIG, [sys.executable, "-c", READY + "sys.stdin.buffer.read(8); os.abort()"]) as decoder,
        pytest.raises(DecodeError) as caught,
    ):
        decoder.decode("/nowhere.mp4", "x")
    assert caught.value.reason == RejectReason.DECODER_CRASH


def test_hanging_child_is_a_decode_timeout() -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", READY + "time.sleep(600)"]
    with (
        Decoder(CONFIG.override({"decode_timeout_s": 0.3}), command) as decoder,
        pytest.raises(DecodeError) as caught,
    ):
        decoder.decode("/nowhere.mp4", "x")
    assert caught.value.reason == RejectReason.DECODE_TIMEOUT
    assert time.monotonic() - began < 30


def altered(code: str) -> list[str]:
    """The command of a child in which `code` has changed something; the module is called `child` there."""
    return [
        sys.executable,
        "-c",
        f"import os, sys, time\nimport evilm.video.decoder_process as child\n{code}\nchild.main()",
    ]


def test_child_decodes_spans(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Decoder(CONFIG) as decoder:
        assert decoder.decode(str(path), "x", 0.25, 0.75) == decode_clip(str(path), "x", CONFIG, None, 0.25, 0.75)
        with pytest.raises(DecodeError, match="bad_span"):
            decoder.decode(str(path), "x", 7.0)


@pytest.mark.parametrize("name", ["auto", pytest.param("decord", marks=pytest.mark.long)])
def test_clip_is_retried_by_the_same_decoder_after_a_timeout(tmp_path: Path, name: str) -> None:
    """The bytes of a shard must not depend on how busy the machine was."""
    if name == "decord":
        pytest.importorskip("decord")
    path, mark = write_video(tmp_path / "a.mp4"), tmp_path / "mark"
    command = altered(f"""
answer = child._answer
def hangs_once(request):
    if not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w").close()
        time.sleep(600)
    return answer(request)
child._answer = hangs_once
""")
    config = CONFIG.override({"decoder": name, "decode_timeout_s": 2.0})
    with Decoder(config, command) as decoder:
        clip = decoder.decode(str(path), "x")
    assert mark.exists()
    assert clip == decode_clip(str(path), "x", config)
    assert clip.decoder == {"auto": "pyav"}.get(name, name)


def test_deadline_counts_cpu_time(tmp_path: Path) -> None:
    """A machine that is busy with others makes no clip fail; one that computes without end does."""
    path = write_video(tmp_path / "a.mp4")
    wait = "answer = child._answer\nchild._answer = lambda request: (time.sleep(2.5), answer(request))[1]"
    with Decoder(CONFIG.override({"decode_timeout_s": 1.0}), altered(wait)) as decoder:
        assert len(decoder.decode(str(path), "x").frames) == CONFIG.num_frames
    spin = "def spin(request):\n    while True:\n        pass\nchild._answer = spin"
    with (
        Decoder(CONFIG.override({"decode_timeout_s": 0.5}), altered(spin)) as decoder,
        pytest.raises(DecodeError, match=r"decode_timeout: longer than 0\.5"),
    ):
        decoder.decode(str(path), "x")


def test_child_killed_once_is_asked_again(tmp_path: Path) -> None:
    path, mark = write_video(tmp_path / "a.mp4"), tmp_path / "mark"
    command = altered(f"""
answer = child._answer
def killed_once(request):
    if not os.path.exists({str(mark)!r}):
        open({str(mark)!r}, "w").close()
        os.kill(os.getpid(), 9)
    return answer(request)
child._answer = killed_once
""")
    with Decoder(CONFIG, command) as decoder:
        assert decoder.decode(str(path), "x") == decode_clip(str(path), "x", CONFIG)


def test_output_of_libraries_does_not_disturb_the_protocol(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    command = altered("""
answer = child._answer
def loud(request):
    os.write(1, b"x" * 2**20)
    os.write(2, b"x" * 2**24)
    return answer(request)
child._answer = loud
""")
    with Decoder(CONFIG, command) as decoder:
        assert decoder.decode(str(path), "x") == decode_clip(str(path), "x", CONFIG)


@pytest.mark.parametrize("nonsense", ["b'{}'", "b'no JSON'", "b'[1]'", "bytes(9)", None])
def test_nonsense_answer_is_a_decoder_crash(tmp_path: Path, nonsense: str | None) -> None:
    message = f"(len({nonsense})).to_bytes(8, 'little') + {nonsense}" if nonsense else "b'x' * 99"
    command = [sys.executable, "-c", READY + f"sys.stdin.buffer.read(8); os.write(1, {message}); time.sleep(600)"]
    with Decoder(CONFIG, command) as decoder, pytest.raises(DecodeError) as caught:
        decoder.decode(str(tmp_path / "a.mp4"), "x")
    assert caught.value.reason == RejectReason.DECODER_CRASH


def test_child_that_does_not_start_is_no_clip_error() -> None:
    for command in ([sys.executable, "-c", "raise SystemExit(3)"], ["/no/such/program"]):
        with Decoder(CONFIG, command) as decoder, pytest.raises(EvilmError, match="does not start") as caught:
            decoder.decode("/nowhere.mp4", "x")
        assert not isinstance(caught.value, DecodeError)


def test_errors_in_the_child_become_reasons(tmp_path: Path) -> None:
    for error, reason in (
        ("OSError(5, 'Input/output error')", RejectReason.FETCH_ERROR),
        ("MemoryError()", RejectReason.TOO_LARGE),
        ("KeyError('what')", RejectReason.DECODE_ERROR),
    ):
        code = f"def broken(*_):\n    raise {error}\nchild.decode_clip = broken"
        with Decoder(CONFIG, altered(code)) as decoder, pytest.raises(DecodeError) as caught:
            decoder.decode(str(tmp_path / "a.mp4"), "x")
        assert caught.value.reason == reason


def test_child_over_its_memory_limit_is_replaced(tmp_path: Path, children: Callable[[], list[psutil.Process]]) -> None:
    path = write_video(tmp_path / "a.mp4")
    with Decoder(CONFIG, altered("child._SWOLLEN_BYTES = 0")) as decoder:
        assert decoder.decode(str(path), "x").frames
        assert decoder._child is None
        assert decoder.decode(str(path), "x").frames
    assert not children()


def test_orphan_ends_while_its_decoder_holds_the_gil(tmp_path: Path) -> None:
    """A decoder may hold the interpreter's lock for ever: the thread that looks for the parent never runs then."""
    command = altered("""
import re
child._DYING_S = 0.5
child._answer = lambda request: re.match("(a+)+$", "a" * 64 + "b")
""")
    request = {"limit_s": 0.5}
    code = (
        "import json, os, signal, sys; from evilm.video.decoder_process import Decoder, _send;"
        f"from evilm.config.data import FramesConfig; d = Decoder(FramesConfig(), {command!r}); c = d._running();"
        f"_send(c.stdin, json.dumps({request!r}).encode()); print(c.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).stdout)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_child_ends_with_its_parent(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    code = (
        "import os, signal, sys; from evilm.video.decoder_process import Decoder; "
        "from evilm.config.data import FramesConfig;"
        f"d = Decoder(FramesConfig()); d.decode({str(path)!r}, 'x'); print(d._child.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False).stdout)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)
