"""Decoding in a process of its own, with a deadline: a video that hangs or kills its decoder costs only itself.

`Decoder` is the side of the caller. `python -m evilm.video.child` is the other side: it answers requests on its
standard input one after the other, each message a length and that many bytes.
"""

import contextlib
import json
import os
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
from evilm.errors import DecodeError
from evilm.video.decode import Backend, DecodedClip, decode_clip
from evilm.video.reasons import Reason

_START_S = 120.0
"""Longest start of a child: an interpreter and its imports, on a machine that may be very busy."""
_CLIPS_PER_CHILD = 1000
"""A child is replaced after this many clips, whatever its libraries may have leaked."""
_MAX_BYTES = 8 * 2**30
"""Address space of a child; a header that asks for more kills the child, not the machine."""
_COMMAND = (sys.executable, "-m", "evilm.video.child")


class _Died(Exception):
    """The child is gone."""


class Decoder:
    """Decodes clips in a child process that is started when needed and killed when it takes too long."""

    def __init__(self, config: FramesConfig, command: Sequence[str] = _COMMAND) -> None:
        self._config, self._command = config, list(command)
        self._child: subprocess.Popen[bytes] | None = None
        self._clips = 0

    def decode(self, path: str, clip_id: str) -> DecodedClip:
        """`decode_clip` in the child; one that hangs or dies is asked once more, in a fresh child.

        Raises:
            DecodeError: as `decode_clip`; or decode_timeout, or decoder_crash.
        """
        first = self._config.decoder
        other: Backend = "decord" if first == "auto" else "pyav"
        try:
            return self._ask(path, clip_id, first)
        except (TimeoutError, _Died):
            self.close()
        try:
            return self._ask(path, clip_id, other)
        except TimeoutError:
            self.close()
            raise DecodeError(Reason.DECODE_TIMEOUT, f"longer than {self._config.decode_timeout_s:g} s") from None
        except _Died:
            self.close()
            raise DecodeError(Reason.DECODER_CRASH) from None

    def close(self) -> None:
        """Kill the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # bytes it never read
                        pipe.close()
            child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, path: str, clip_id: str, backend: Backend) -> DecodedClip:
        child = self._running()
        request = {"path": path, "clip_id": clip_id, "backend": backend, "config": self._config.model_dump(mode="json")}
        try:
            _send(child.stdin, json.dumps(request).encode())
        except OSError:
            raise _Died from None
        deadline = time.monotonic() + self._config.decode_timeout_s
        answer = json.loads(_receive(child.stdout, deadline))
        self._clips += 1
        if "reason" in answer:
            raise DecodeError(Reason(answer["reason"]), answer["detail"])
        frames = [_receive(child.stdout, deadline) for _ in range(answer.pop("num_frames"))]
        return DecodedClip(frames=frames, **answer)

    def _running(self) -> subprocess.Popen[bytes]:
        """The child, started anew where there is none or it has served long enough."""
        if self._clips >= _CLIPS_PER_CHILD:
            self.close()
        if self._child is None:
            package = str(Path(__file__).parents[2])  # where this evilm lies, also below a Ray working directory
            paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders write kilobytes per damaged file, past any Python setting
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            )
            self._clips = 0
            try:
                _receive(self._child.stdout, time.monotonic() + _START_S)
            except TimeoutError:
                raise _Died from None
        return self._child


def _send(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _receive(pipe: IO[bytes] | None, deadline: float) -> bytes:
    """The next message.

    Raises:
        TimeoutError: it did not arrive in time.
        _Died: it never will.
    """
    assert pipe is not None
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        length = int.from_bytes(_read(pipe, 8, selector, deadline), "little")
        return _read(pipe, length, selector, deadline)


def _read(pipe: IO[bytes], length: int, selector: selectors.BaseSelector, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        part = os.read(pipe.fileno(), min(length - len(data), 1 << 20))
        if not part:
            raise _Died
        data += part
    return bytes(data)


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """A request's answer, and the frames that follow it."""
    try:
        config = FramesConfig.model_validate(request["config"])
        clip = decode_clip(request["path"], request["clip_id"], config, request["backend"])
    except DecodeError as error:
        return {"reason": error.reason, "detail": error.detail}, []
    except Exception as error:  # a decoder may raise anything on damaged input; it concerns this clip alone
        return {"reason": Reason.DECODE_ERROR, "detail": f"{type(error).__name__}: {error}"}, []
    answer = asdict(clip)
    frames = answer.pop("frames")
    return answer | {"num_frames": len(frames)}, frames


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone, even in the middle of a hanging decoder."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _limit() -> None:
    """Cap this process' memory, and leave no core files behind."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > _MAX_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, hard))


def main() -> None:
    """Answer requests until standard input ends."""
    parent = os.getppid()
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    _limit()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers
    _send(answers, b"ready")
    while head := requests.read(8):
        answer, frames = _answer(json.loads(requests.read(int.from_bytes(head, "little"))))
        _send(answers, json.dumps(answer).encode())
        for frame in frames:
            _send(answers, frame)


if __name__ == "__main__":
    main()
