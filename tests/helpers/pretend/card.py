"""A pretended GPU: tensors on cuda:0 whose numbers are computed on the CPU, as strict about devices as a card.

    with PretendCard() as card:
        model.to("cuda")
        step(model, batch)
        print(card.reads)

To torch a tensor of the card is one of CUDA, so autograd, autocast, inference mode, fused optimizers and foreach
kernels take the way that they take on a card. An operation that mixes devices raises as it would there: a CPU tensor of
no dimensions may stand beside others in pointwise operations, and nowhere else. Each time the host has to wait for the
card is noted with the line of Python that asks for it: item, nonzero, boolean indexing, copies to the host, copies from
memory that is not pinned. Order between streams and copies in flight: see `streams`. Ranks with a card each
talk over gloo. There is no memory limit, no NCCL, no torch.compile, and nothing about speed. Where torch has a real
card, use that one.
"""

import collections
import contextlib
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.optimizer import _foreach_supported_types as _FOREACH_OPTIMIZER
from torch.utils._foreach_utils import _foreach_supported_types as _FOREACH_UTILS

from helpers.pretend import waits
from helpers.pretend.autocast import CudaAutocast
from helpers.pretend.ddp import Reducer, group_tensors
from helpers.pretend.dispatch import Front, Mode
from helpers.pretend.streams import Event, Stream, Timeline, Using, timelines
from helpers.pretend.tensor import OnCard, is_pinned, pin_memory
from helpers.pretend.waits import Read, note


class PretendCard:
    """While it is active, a card is there."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        """Each wait of the host, other than for events and streams."""
        self.timeline = Timeline()

    @property
    def waits(self) -> list[tuple[str, int]]:
        """Waits for events and streams, and the number of kernels queued behind them."""
        return self.timeline.waits

    def counted(self) -> dict[str, int]:
        """Reads by kind."""
        return dict(collections.Counter(read.what for read in self.reads))

    def clear(self) -> None:
        """Forget reads and waits."""
        self.reads.clear()
        self.timeline.waits.clear()

    def __enter__(self) -> "PretendCard":
        with contextlib.ExitStack() as stack:
            for owner, name, value in self._patches():
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            for known in (_FOREACH_OPTIMIZER, _FOREACH_UTILS):
                known.append(OnCard)
                stack.callback(known.remove, OnCard)
            overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
            torch.__future__.set_overwrite_module_params_on_conversion(True)
            stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
            timelines.append(self.timeline)
            stack.callback(timelines.remove, self.timeline)
            waits.reads.append(self.reads)
            stack.callback(waits.reads.pop)
            stack.enter_context(Mode())
            stack.enter_context(Front())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _patches(self) -> list[tuple[Any, str, Any]]:
        """What torch's Python asks of CUDA."""
        line, cuda = self.timeline, torch.cuda
        values: dict[str, Any] = {
            "_lazy_init": lambda: None, "is_available": lambda: True, "is_initialized": lambda: True,
            "_lazy_call": lambda *_, **__: None, "device_count": lambda: 1, "current_device": lambda: 0,
            "set_device": lambda *_: None, "is_bf16_supported": lambda *_, **__: True,
            "get_device_capability": lambda *_: (9, 0), "get_device_name": lambda *_: "pretended card",
            "get_device_properties": lambda *_: SimpleNamespace(name="pretended card", total_memory=80 * 2**30),
            "is_current_stream_capturing": lambda: False, "Stream": Stream, "Event": Event, "stream": Using,
            "current_stream": lambda *_: line.stream, "default_stream": lambda *_: line.default,
            "synchronize": lambda *_: note("synchronize"), "empty_cache": lambda: None,
            "memory_allocated": lambda *_: line.allocated, "max_memory_allocated": lambda *_: line.peak,
            "memory_reserved": lambda *_: line.allocated,
            "reset_peak_memory_stats": lambda *_: setattr(line, "peak", line.allocated),
        }  # fmt: skip
        tensor = [(torch.Tensor, "pin_memory", pin_memory), (torch.Tensor, "is_pinned", is_pinned)]
        health = [
            (torch.optim.Optimizer, n, lambda _: None)
            for n in vars(torch.optim.Optimizer)
            if n.endswith("capture_health_check")
        ]
        check = (torch.distributed, "_verify_params_across_processes", lambda *_: None)  # of shapes, by the same C++
        reducer = [(torch.distributed, "Reducer", Reducer), check]
        others = [
            *reducer,
            (torch, "autocast", CudaAutocast),
            (torch._C, "_group_tensors_by_device_and_dtype", group_tensors),
        ]
        return [*((cuda, name, value) for name, value in values.items()), *tensor, *health, *others]
