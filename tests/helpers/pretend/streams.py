"""Streams, events and copies in flight of the pretended card: what may run before what, and what the host may read.

Everything is computed at once, on the CPU; only the order is kept in mind. A stream is a row of numbered kernels. It
knows how far each other stream had got when it waited for it, and so does the host. Three mistakes that a real card
answers with wrong numbers are errors here: reading or overwriting what another stream may still be writing or reading,
memory of a freed tensor used again while another stream still reads it, and pinned memory changed during a copy. A copy
to pinned memory brings its numbers only when the host has waited for it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Stream:
    """A row of kernels; `priority` and the like mean nothing here."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.ticks = 0
        self.seen: dict[Stream, int] = defaultdict(int)
        """Kernels of each other stream that are done before the next one of this stream."""
        self.freed: dict[Stream, int] = defaultdict(int)
        """Kernels of each other stream that have to be done before memory freed on this one is reused."""

    def wait_event(self, event: Event) -> None:
        """Make the next kernels wait for the event."""
        for stream, ticks in event.seen.items():
            self.seen[stream] = max(self.seen[stream], ticks)

    def wait_stream(self, stream: Stream) -> None:
        """Make the next kernels wait for all that the other stream has been given so far."""
        event = Event()
        event.record(stream)
        self.wait_event(event)

    def record_event(self, event: Event | None = None) -> Event:
        """An event at this point of the stream."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Let the host wait."""
        timeline().host_waits(self.record_event(), "stream.synchronize")

    def query(self) -> bool:
        """Everything is always done."""
        return True


class Event:
    """A point of a stream."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.seen: dict[Stream, int] = {}
        self.at = 0

    def record(self, stream: Stream | None = None) -> None:
        """Stand for all that the stream was given so far."""
        stream = stream or timeline().stream
        self.seen = {**stream.seen, stream: stream.ticks}
        self.at = timeline().kernels

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream wait."""
        (stream or timeline().stream).wait_event(self)

    def synchronize(self) -> None:
        """Let the host wait."""
        timeline().host_waits(self, "event.synchronize")

    def query(self) -> bool:
        """Everything is always done; numbers that a copy brings are there then."""
        timeline().arrive(self)
        return True

    def elapsed_time(self, end: Event) -> float:
        """Kernels between two events, as milliseconds."""
        return float(end.at - self.at)


@dataclass
class _Memory:
    """The last uses of a storage's memory."""

    owner: Stream
    nbytes: int
    storage: StorageWeakRef
    """As long as it exists, no other storage gets the same address, which is the key of this record."""
    wrappers: int = 0
    written: tuple[Stream, int] | None = None
    read: dict[Stream, int] = field(default_factory=dict)
    recorded: set[Stream] = field(default_factory=set)


@dataclass
class _Copy:
    """A copy between the card and pinned memory."""

    stream: Stream
    ticks: int
    pinned: torch.Tensor
    values: torch.Tensor
    to_host: bool


class Timeline:
    """The order of everything that a card was given."""

    def __init__(self) -> None:
        self.default = Stream()
        self.kernels = 0
        """Kernels launched, on all streams."""
        self.allocated = self.peak = 0
        """Bytes of living tensors."""
        self.waits: list[tuple[str, int]] = []
        """Each wait of the host for an event or a stream: what for, and how many kernels were queued behind it."""
        self._memory: dict[int, _Memory] = {}
        self._copies: list[_Copy] = []
        self._local = threading.local()
        self._lock = threading.RLock()

    @property
    def stream(self) -> Stream:
        """The current stream of this thread."""
        return getattr(self._local, "stream", self.default)

    @contextmanager
    def using(self, stream: Stream | None) -> Iterator[None]:
        """Make a stream the current one."""
        before, self._local.stream = self.stream, stream or self.stream
        try:
            yield
        finally:
            self._local.stream = before

    def launch(self, reads: list[torch.Tensor], writes: list[torch.Tensor], what: str) -> None:
        """A kernel on the current stream; tensors are those inside.

        Raises:
            RuntimeError: another stream may still be at one of them.
        """
        with self._lock:
            stream = self.stream
            self.kernels += 1
            stream.ticks += 1
            for tensor in reads:
                memory = self._known(tensor)
                self._check(stream, memory.written, f"{what} reads what another stream may still be writing")
                memory.read[stream] = stream.ticks
            for tensor in writes:
                memory = self._known(tensor)
                self._check(stream, memory.written, f"{what} overwrites what another stream may still be writing")
                for other in memory.read.items():
                    self._check(stream, other, f"{what} overwrites what another stream may still be reading")
                memory.written, memory.read = (stream, stream.ticks), {}

    def _check(self, stream: Stream, use: tuple[Stream, int] | None, problem: str) -> None:
        if use and use[0] is not stream and stream.seen[use[0]] < use[1]:
            raise RuntimeError(f"{problem}; let the stream wait for it (wait_stream, wait_event)")

    def hold(self, tensor: torch.Tensor) -> int:
        """One more tensor of the card over this memory; the key for `release` and `record`."""
        with self._lock:
            memory = self._known(tensor)
            memory.wrappers += 1
            return tensor.untyped_storage()._cdata

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether these numbers are in memory of the card."""
        with self._lock:
            return tensor.untyped_storage()._cdata in self._memory

    def release(self, key: int) -> None:
        """One tensor less; with the last one the memory is free for the stream that owns it."""
        with self._lock:
            memory = self._memory[key]
            memory.wrappers -= 1
            if memory.wrappers:
                return
            del self._memory[key]
            self.allocated -= memory.nbytes
            for stream, ticks in [*memory.read.items(), *([memory.written] if memory.written else [])]:
                if stream is not memory.owner and stream not in memory.recorded:
                    memory.owner.freed[stream] = max(memory.owner.freed[stream], ticks)

    def record(self, key: int, stream: Stream) -> None:
        """Free the memory later only when this stream has passed: `Tensor.record_stream`."""
        self._memory[key].recorded.add(stream)

    def _known(self, tensor: torch.Tensor) -> _Memory:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memory:
            stream = self.stream
            for other, ticks in stream.freed.items():
                self._check(
                    stream, (other, ticks), "memory of a freed tensor is used again while another stream reads it"
                )
            self._memory[storage._cdata] = _Memory(stream, storage.nbytes(), StorageWeakRef(storage))
            self.allocated += storage.nbytes()
            self.peak = max(self.peak, self.allocated)
        return self._memory[storage._cdata]

    def to_pinned(self, pinned: torch.Tensor, values: torch.Tensor) -> None:
        """Begin a copy to pinned memory; until it has arrived there is nonsense in its place."""
        with self._lock:
            self._copies.append(_Copy(self.stream, self.stream.ticks, pinned, values.clone(), True))
            pinned.fill_(float("nan") if pinned.is_floating_point() else 113)

    def from_pinned(self, pinned: torch.Tensor) -> None:
        """Begin a copy from pinned memory, which has to stay as it is until the host has waited for the copy."""
        with self._lock:
            self._copies.append(_Copy(self.stream, self.stream.ticks, pinned, pinned.clone(), False))

    def host_waits(self, event: Event, what: str) -> None:
        """The host waits for an event."""
        self.waits.append((what, self.kernels - event.at))
        self.arrive(event)

    def arrive(self, event: Event) -> None:
        """End the copies that the event is behind of.

        Raises:
            RuntimeError: pinned memory was overwritten before its copy had ended.
        """
        with self._lock:
            done = [copy for copy in self._copies if event.seen.get(copy.stream, 0) >= copy.ticks]
            self._copies = [copy for copy in self._copies if event.seen.get(copy.stream, 0) < copy.ticks]
            for copy in done:
                if copy.to_host:
                    copy.pinned.copy_(copy.values)
                elif not torch.equal(copy.pinned, copy.values):
                    raise RuntimeError("pinned memory was overwritten while a copy from it was under way")

    def drain(self) -> None:
        """The host waits for all streams."""
        event = Event()
        event.seen = {copy.stream: copy.stream.ticks for copy in self._copies}
        self.arrive(event)


timelines: list[Timeline] = []


def timeline() -> Timeline:
    """Return the timeline of the card in use."""
    return timelines[-1]


class Using:
    """`torch.cuda.stream(stream)`."""

    def __init__(self, stream: Stream | None) -> None:
        self._context = timeline().using(stream)

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.__exit__(kind, error, trace)
