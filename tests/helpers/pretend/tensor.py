"""A tensor of the pretended card, and how its numbers get from the host to the card and back."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch.utils._pytree import tree_map_only

from helpers.pretend.autocast import AUTOCAST, EXACT, exact
from helpers.pretend.streams import timeline
from helpers.pretend.waits import is_pinned_storage, note, pin

CUDA = torch.device("cuda", 0)


class OnCard(torch.Tensor):
    """A tensor of the card; its numbers are in `inner`, on the CPU.

    Python is told that it is one of CUDA, C++ that it is one of the CPU: without a card its autograd knows no other.
    """

    inner: torch.Tensor
    key: int
    dispatch_mode: ClassVar[Callable[[], Any]]
    """Sends operations through the card; `dispatch` sets it."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnCard":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=inner.device, requires_grad=False,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner, line = inner, timeline()
        self.key = line.hold(inner)
        weakref.finalize(self, line.release, self.key).atexit = False

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def record_stream(self, stream: Any) -> None:
        """`Tensor.record_stream`, whose C++ takes real streams only."""
        timeline().record(self.key, stream)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ON_HOST:
            return ON_HOST[func](*args, **kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cpu" and isinstance(args[0], OnCard):
            return func(*bare(args), **bare(kwargs))  # zeros_like(x, device="cpu") and such
        if AUTOCAST.on and func in EXACT:
            args, kwargs = tree_map_only(torch.Tensor, exact, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass(), from_card(func):
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Threads that the mode is not active in come here."""
        with cls.dispatch_mode():
            return func(*args, **(kwargs or {}))

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"OnCard({self.inner!r})"


class _ToHost(torch.autograd.Function):
    """A copy to the host that gradients go back through."""

    @staticmethod
    def forward(ctx: Any, tensor: OnCard, non_blocking: bool, memory_format: Any) -> torch.Tensor:
        """The numbers, on the CPU."""
        timeline().launch([tensor.inner], [], "copy to the host")
        out = tensor.inner.clone() if memory_format is None else tensor.inner.clone(memory_format=memory_format)
        if non_blocking:  # torch takes pinned memory for these by itself
            timeline().to_pinned(pin(out), out)
        else:
            note("copy to the host")
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradient, on the card."""
        return grads[0].to(CUDA), None, None


def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`, where the tensor or the one whose device is meant is on the card."""
    other = kwargs.pop("other", args[0] if args and isinstance(args[0], torch.Tensor) else None)
    if other is not None:
        args = (other.device, other.dtype, *args[1:])
    copy = (
        kwargs.pop("copy", False)
        or (len(args) > 3 and args[3])
        or (len(args) == 3 and isinstance(args[1], bool) and args[2])
    )
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    here = isinstance(tensor, OnCard)
    device = CUDA if device is not None and device.type == "cuda" else device
    if device is None or (device.type == "cuda") == here:
        with torch._C.DisableTorchFunctionSubclass():
            return torch.Tensor.to(
                tensor, dtype or tensor.dtype, copy=bool(copy), memory_format=memory_format or torch.preserve_format
            )
    if here:
        out = _ToHost.apply(tensor, non_blocking, memory_format)
        return out if dtype in (None, out.dtype) else out.to(dtype)
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.to(tensor, device, dtype or tensor.dtype, non_blocking=non_blocking)


def _new_tensor(
    tensor: OnCard, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> Any:
    return to(torch.tensor(data, dtype=dtype or tensor.dtype), device or CUDA).requires_grad_(requires_grad)


def _tolist(tensor: OnCard) -> Any:
    note("tolist")
    return tensor.inner.tolist()


def _no_numpy(*_: Any, **__: Any) -> Any:
    raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")


def is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    """`Tensor.is_pinned` of the card's host."""
    return not isinstance(tensor, OnCard) and is_pinned_storage(tensor)


def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """`Tensor.pin_memory` of the card's host: a copy, but of what is pinned already."""
    if isinstance(tensor, OnCard):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    return tensor if is_pinned(tensor) else pin(tensor.clone())


ON_HOST: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: to,
    torch.Tensor.cpu: lambda x, **kwargs: to(x, "cpu", **kwargs),
    torch.Tensor.cuda: lambda x, *_, **__: to(x, CUDA),
    torch.Tensor.type_as: lambda x, other: to(x, other),
    torch.Tensor.new_tensor: _new_tensor,
    torch.Tensor.tolist: _tolist,
    torch.Tensor.numpy: _no_numpy,
    torch.Tensor.__array__: _no_numpy,
    torch.Tensor.get_device: lambda x: 0,
}
"""What C++, which takes tensors of the card for the CPU's, would answer wrongly."""


def bare(tree: Any) -> Any:
    return tree_map_only(OnCard, lambda x: x.inner, tree)


class _Depth(threading.local):
    value = 0


DEPTH = _Depth()


@contextlib.contextmanager
def from_card(func: Any) -> Iterator[None]:
    """While C++ works on tensors of the card, what it makes from nothing is on the card too."""
    inner = not isinstance(func, FunctionType) or func is torch.Tensor.backward
    DEPTH.value += inner
    try:
        yield
    finally:
        DEPTH.value -= inner
