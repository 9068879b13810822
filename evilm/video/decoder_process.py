"""Decode in a child process with a deadline, so that a video that hangs or crashes its decoder affects nothing else.

`Decoder` is the caller's side. `python -m evilm.video.decoder_process` is the child: it answers requests on its
standard input one by one. Each message is a length followed by that many bytes.
"""

import contextlib
import faulthandler
import json
import os
import resource
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from evilm.config.data import FramesConfig
from evilm.errors import DecodeError, EvilmError
from evilm.video.decode import DecodedClip, decode_clip
from evilm.video.reasons import RejectReason

_START_S = 120.0
"""Longest start of a child: an interpreter and its imports on a machine that may be very busy."""
_CLIPS_PER_CHILD = 1000
"""A child is replaced after this many clips, which bounds leaks of its libraries."""
_MAX_BYTES = 4 * 2**30
"""Address space of a child; only a file that needs more fails, not the machine."""
_SWOLLEN_BYTES = 2**30
"""A child that still holds this much memory after a clip is replaced."""
_PATIENCE = 3
"""Wall-clock time a child may take, as a multiple of its CPU time, on a machine with other load."""
_S_PER_MB = 0.5
"""Growth of the deadline with the file size: ample for decoding all of a video twice."""
_DYING_S = 10.0
"""Longest wait for a killed child to end."""
_LONGEST_MESSAGE = 2**28
"""Frames are always shorter; a longer announced length is not a valid message."""
_COMMAND = (sys.executable, "-m", "evilm.video.decoder_process")


class _WorkerDied(Exception):
    """The child has ended."""


class Decoder:
    """Decodes clips in a child process, started when needed and killed when it takes too long."""

    def __init__(self, config: FramesConfig, command: Sequence[str] = _COMMAND) -> None:
        self._config, self._command = config, list(command)
        self._child: subprocess.Popen[bytes] | None = None
        self._clips = 0

    def decode(
        self,
        path: str,
        clip_id: str,
        start_s: float | None = None,
        end_s: float | None = None,
        may_be_cut: bool = False,
    ) -> DecodedClip:
        """Run `decode_clip` in the child; a clip that hangs or crashes it is tried once more, in a new child.

        Raises:
            DecodeError: as `decode_clip`, or decode_timeout, or decoder_crash.
            EvilmError: no child can be started, for reasons other than the clip.
        """
        request = {"path": path, "clip_id": clip_id, "start_s": start_s, "end_s": end_s, "may_be_cut": may_be_cut}
        limit_s = self._config.decode_timeout_s + _S_PER_MB * _megabytes(path)
        try:
            return self._ask(request, limit_s)
        except (TimeoutError, _WorkerDied):  # of this clip, or because the machine was busy or short of memory
            self.close()
        try:  # by the same decoder: bytes must not depend on speed
            return self._ask(request, limit_s)
        except TimeoutError:
            self.close()
            raise DecodeError(RejectReason.DECODE_TIMEOUT, f"longer than {limit_s:g} s of CPU time") from None
        except _WorkerDied:
            self.close()
            raise DecodeError(RejectReason.DECODER_CRASH) from None

    def close(self) -> None:
        """Kill the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # bytes that it never read
                        pipe.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process reading from a dead disk can't be killed
                child.wait(_DYING_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], limit_s: float) -> DecodedClip:
        child = self._running()
        request = request | {"config": self._config.model_dump(mode="json"), "limit_s": limit_s}
        try:
            _send(child.stdin, json.dumps(request).encode())
        except OSError:
            raise _WorkerDied from None
        deadline = _Deadline(limit_s, child.pid)
        try:
            answer = json.loads(_receive(child.stdout, deadline))
            frames = [_receive(child.stdout, deadline) for _ in range(answer.pop("num_frames"))]
            is_swollen, reason, detail = (answer.pop(name) for name in ("is_swollen", "reason", "detail"))
            clip = None if reason else DecodedClip(frames=frames, **answer)
        except (ValueError, TypeError, KeyError):  # an invalid answer
            raise _WorkerDied from None
        self._clips += 1
        if is_swollen:
            self.close()
        if clip is None:
            raise DecodeError(RejectReason(reason), detail)
        return clip

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the child; start one if there is none or it has decoded enough clips."""
        if self._clips >= _CLIPS_PER_CHILD:
            self.close()
        if self._child is None:
            try:
                self._start()
            except EvilmError:  # try again: the machine may have been short of memory for a moment
                self._start()
        assert self._child is not None
        return self._child

    def _start(self) -> None:
        package = str(Path(__file__).parents[2])  # the folder of this evilm, possibly in a Ray working directory
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._clips = 0
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders write kilobytes per damaged file, which Python can't turn off
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
            _receive(self._child.stdout, _Deadline(_START_S))
        except (OSError, _WorkerDied) as error:  # TimeoutError is an OSError
            self.close()
            raise EvilmError(
                f"the decoding process does not start ({type(error).__name__}); run {' '.join(self._command)} by hand "
                "on this machine to see why"
            ) from None


def _megabytes(path: str) -> float:
    try:
        return os.stat(path).st_size / 2**20
    except (OSError, ValueError):
        return 0.0  # the child will report the error


def _send(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


class _Deadline:
    """Expires when a process has used its CPU time, or after a multiple of it, when it waits or hangs."""

    def __init__(self, limit_s: float, pid: int = 0) -> None:
        self._pid = pid
        self._cpu = _cpu_seconds(pid) + limit_s
        self._end = time.monotonic() + limit_s * (_PATIENCE if pid else 1)

    def left(self) -> float:
        """Return the seconds to wait before the next check; 0 when the time is up."""
        left = self._end - time.monotonic()
        return max(0.0, min(left, self._cpu - _cpu_seconds(self._pid)) if self._pid else left)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, over all threads; 0 if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _receive(pipe: IO[bytes] | None, deadline: _Deadline) -> bytes:
    """Receive the next message.

    Raises:
        TimeoutError: it did not arrive in time.
        _WorkerDied: the child ended before.
    """
    assert pipe is not None
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        length = int.from_bytes(_read(pipe, 8, selector, deadline), "little")
        if length > _LONGEST_MESSAGE:
            raise _WorkerDied
        return _read(pipe, length, selector, deadline)


def _read(pipe: IO[bytes], length: int, selector: selectors.BaseSelector, deadline: _Deadline) -> bytes:
    data = bytearray()
    while len(data) < length:
        while not selector.select(left := deadline.left()):
            if not left:
                raise TimeoutError
        part = os.read(pipe.fileno(), min(length - len(data), 1 << 20))
        if not part:
            raise _WorkerDied
        data += part
    return bytes(data)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Answer a request; return the answer and the frames that follow it."""
    try:
        config = FramesConfig.model_validate(request["config"])
        span = (request["start_s"], request["end_s"], request["may_be_cut"])
        clip = asdict(decode_clip(request["path"], request["clip_id"], config, None, *span))
    except DecodeError as error:
        return {"reason": error.reason, "detail": error.detail}, []
    except MemoryError:
        return {"reason": RejectReason.TOO_LARGE, "detail": "more memory than a decoder may use"}, []
    except OSError as error:  # the file or its disk disappeared
        return {"reason": RejectReason.FETCH_ERROR, "detail": error.strerror or type(error).__name__}, []
    except Exception as error:  # a decoder may raise anything on damaged input; it concerns only this clip
        return {"reason": RejectReason.DECODE_ERROR, "detail": f"{type(error).__name__}: {error}"}, []
    frames = clip.pop("frames")
    return clip | {"reason": "", "detail": ""}, frames


def _leave_with(parent: int) -> None:
    """End this process when its parent ends, even if the decoder hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _limit() -> None:
    """Limit this process's memory, let it be killed first if the machine has none left, and disable core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > _MAX_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, hard))
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def _held_bytes() -> int:
    """Return this process's memory; the peak of getrusage would include the parent's at the fork."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0


def main() -> None:
    """Answer requests until standard input ends."""
    parent = os.getppid()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    _limit()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    _send(answers, b"ready")
    while head := requests.read(8):
        request = json.loads(requests.read(int.from_bytes(head, "little")))
        # Ends this process after its parent even if a decoder lets no Python thread run.
        faulthandler.dump_traceback_later(_PATIENCE * request["limit_s"] + _DYING_S, exit=True)
        answer, frames = _answer(request)
        faulthandler.cancel_dump_traceback_later()
        is_swollen = _held_bytes() > _SWOLLEN_BYTES
        _send(answers, json.dumps(answer | {"num_frames": len(frames), "is_swollen": is_swollen}).encode())
        for frame in frames:
            _send(answers, frame)


if __name__ == "__main__":
    main()
