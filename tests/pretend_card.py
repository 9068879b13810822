"""A pretended GPU: tensors on cuda:0 whose numbers are computed on the CPU, as strict about devices as a card.

    with PretendCard() as card:
        model.to("cuda")
        step(model, batch)
        print(card.reads)

To torch a tensor of the card is one of CUDA, so autograd, autocast, inference mode, fused optimizers and foreach
kernels take the way that they take on a card. An operation that mixes devices raises as it would there: a CPU tensor of
no dimensions may stand beside others in pointwise operations, and nowhere else. Each time the host has to wait for the
card is noted with the line of Python that asks for it: item, nonzero, boolean indexing, copies to the host, copies from
memory that is not pinned. Order between streams and copies in flight: see `pretend_streams`. Ranks with a card each
talk over gloo. There is no memory limit, no NCCL, no torch.compile, and nothing about speed. Where torch has a real
card, use that one.
"""

import collections
import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from pretend_streams import Event, Stream, Timeline, Using, _timelines, timeline
from torch.optim.optimizer import _foreach_supported_types as _FOREACH_OPTIMIZER
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _foreach_supported_types as _FOREACH_UTILS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
_REAL_AUTOCAST = torch.autocast
_REAL_GROUPS = torch._C._group_tensors_by_device_and_dtype
_REAL_REDUCER = torch.distributed.Reducer
_COLLECTIVES = {"c10d::allreduce_", "c10d::broadcast_"}
_MOVES = {aten._to_copy.default, aten.copy_.default}
_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_BLOCKING = {
    aten._local_scalar_dense: "item", aten.nonzero: "nonzero", aten.masked_select: "masked_select",
    aten.equal: "equal", aten._unique2: "unique", aten.unique_dim: "unique", aten.bincount: "bincount",
    aten.repeat_interleave: "repeat_interleave",
}  # fmt: skip
_SCALARS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.where.self}
"""Beside the pointwise ones: operations that take a CPU tensor of no dimensions for its number."""
_TORCH = str(Path(torch.__file__).parent)
_HERE = {__file__, str(Path(__file__).with_name("pretend_streams.py"))}


class Read(NamedTuple):
    """A wait of the host for the card."""

    what: str
    line: str
    """The innermost line of Python outside torch."""
    ours: str
    """The innermost line of the project, of tests if it is none of the package; often the same."""

    def __str__(self) -> str:
        via = "" if self.line == self.ours else f" (through {self.line})"
        return f"{self.what} at {self.ours}{via}"


class OnCard(torch.Tensor):
    """A tensor of the card; its numbers are in `inner`, on the CPU.

    Python is told that it is one of CUDA, C++ that it is one of the CPU: without a card its autograd knows no other.
    """

    inner: torch.Tensor
    key: int

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
        if func in _ON_HOST:
            return _ON_HOST[func](*args, **kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cpu" and isinstance(args[0], OnCard):
            return func(*_bare(args), **_bare(kwargs))  # zeros_like(x, device="cpu") and such
        if _AUTOCAST.on and func in _EXACT:
            args, kwargs = tree_map_only(torch.Tensor, _exact, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass(), _from_card(func):
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Threads that the mode is not active in come here."""
        with _Mode():
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
            timeline().to_pinned(_pin(out), out)
        else:
            _note("copy to the host")
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradient, on the card."""
        return grads[0].to(CUDA), None, None


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
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
    return _to(torch.tensor(data, dtype=dtype or tensor.dtype), device or CUDA).requires_grad_(requires_grad)


def _tolist(tensor: OnCard) -> Any:
    _note("tolist")
    return tensor.inner.tolist()


def _no_numpy(*_: Any, **__: Any) -> Any:
    raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")


def is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    """`Tensor.is_pinned` of the card's host."""
    return not isinstance(tensor, OnCard) and tensor.untyped_storage()._cdata in _pinned_storages


def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """`Tensor.pin_memory` of the card's host: a copy, but of what is pinned already."""
    if isinstance(tensor, OnCard):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    return tensor if is_pinned(tensor) else _pin(tensor.clone())


_ON_HOST: dict[Any, Callable[..., Any]] = {
    torch.Tensor.to: _to,
    torch.Tensor.cpu: lambda x, **kwargs: _to(x, "cpu", **kwargs),
    torch.Tensor.cuda: lambda x, *_, **__: _to(x, CUDA),
    torch.Tensor.type_as: lambda x, other: _to(x, other),
    torch.Tensor.new_tensor: _new_tensor,
    torch.Tensor.tolist: _tolist,
    torch.Tensor.numpy: _no_numpy,
    torch.Tensor.__array__: _no_numpy,
    torch.Tensor.get_device: lambda x: 0,
}
"""What C++, which takes tensors of the card for the CPU's, would answer wrongly."""


class _Autocast(threading.local):
    on = False


_AUTOCAST = _Autocast()
_FUNCTIONAL = torch.nn.functional
_EXACT = {
    *(getattr(owner, name) for owner in (torch, torch.Tensor, _FUNCTIONAL) for name in (
        *("exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "tan", "pow", "__pow__", "__rpow__"),
        *("softplus", "layer_norm", "native_layer_norm", "group_norm", "cosine_similarity", "nll_loss", "kl_div"),
        *("l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "binary_cross_entropy_with_logits", "dist", "cdist"),
        *("renorm", "logsumexp", "prod", "softmax", "log_softmax", "cumprod", "cumsum", "norm", "sum", "normalize"),
        "cross_entropy",
    ) if hasattr(owner, name)),
}  # fmt: skip
"""What CUDA's autocast computes in float32 and the CPU's does not (or not always)."""


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class _CudaAutocast(_REAL_AUTOCAST):
    """`torch.autocast` with that of CUDA spelled out: the CPU's casts matrix products, `_EXACT` does the others."""

    def __init__(self, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None) -> None:
        self._cuda = device_type == "cuda"
        if self._cuda:
            device_type, dtype = "cpu", dtype or torch.float16
        super().__init__(device_type, dtype, enabled, cache_enabled)
        self._before: list[bool] = []

    def __enter__(self) -> Any:
        self._before.append(_AUTOCAST.on)
        if self._cuda:
            _AUTOCAST.on = self._enabled
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        _AUTOCAST.on = self._before.pop()
        return super().__exit__(*error)


class _Front(TorchFunctionMode):
    """Says which card is meant by "cuda", which C++ would ask the driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.to, torch.Tensor.cuda):
            return _ON_HOST[func](*args, **kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            if func in (torch.tensor, torch.as_tensor):  # made on the host, then copied, as on a card
                del kwargs["device"]
                return _to(func(*args, **kwargs), CUDA)
            kwargs["device"] = CUDA
        return func(*args, **kwargs)


class _Depth(threading.local):
    value = 0


_DEPTH = _Depth()


@contextlib.contextmanager
def _from_card(func: Any) -> Iterator[None]:
    """While C++ works on tensors of the card, what it makes from nothing is on the card too."""
    inner = not isinstance(func, FunctionType) or func is torch.Tensor.backward
    _DEPTH.value += inner
    try:
        yield
    finally:
        _DEPTH.value -= inner


class _Mode(TorchDispatchMode):
    """Sends every operation of a thread through the card."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_inference_mode_enabled():  # autograd, which takes composite operations apart, is passed by then
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        if func in _MOVES:
            return _move(func, tensors, args, kwargs)
        carded = [x for x in tensors if isinstance(x, OnCard)]
        _check_devices(func, tensors, carded)
        _note_waits(func, args, carded)
        on_card = bool(carded) or bool(_DEPTH.value and not tensors)
        if kwargs.get("device") is not None:  # of "cpu" C++ can't know whether it means the card
            on_card = on_card or torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        pinned = bool(kwargs.pop("pin_memory", False))
        out = func(*_bare(args), **_bare(kwargs))
        if on_card:
            _launch(func, carded, args, kwargs, out)
        elif pinned:
            _pin(out)
        return _wrapped(func, tensors, out, on_card)


def _bare(tree: Any) -> Any:
    return tree_map_only(OnCard, lambda x: x.inner, tree)


def _wrapped(func: Any, tensors: list[torch.Tensor], out: Any, on_card: bool) -> Any:
    """Results as tensors of the card; what an operation changed in place is the tensor that came in."""
    came = {id(_bare(x)): x for x in tensors} if func._schema.is_mutable else {}

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in came:
            assert came[id(x)].shape == x.shape, f"{func} changes a shape in place, which the card can't"
            return came[id(x)]
        return OnCard(x) if on_card else x

    with torch.inference_mode(False):  # a view of a tensor from outside of inference mode has to be as that one
        return tree_map(wrap, out)


def _check_devices(func: Any, tensors: list[torch.Tensor], carded: list[OnCard]) -> None:
    """Refuse what a card would refuse.

    Raises:
        RuntimeError: tensors on both devices.
    """
    plain = [x for x in tensors if not isinstance(x, OnCard)]
    if plain and func._schema.name in _COLLECTIVES:
        raise RuntimeError(f"{func}: NCCL takes no tensors of the CPU, at {_line().ours}")
    if not carded or not plain:
        return
    if func in _INDEX and isinstance(tensors[0], OnCard):  # indices are moved to the card, and a single value too
        return
    scalars = torch.Tag.pointwise in func.tags or func in _SCALARS
    if scalars and not func._schema.name.startswith("aten::_foreach") and all(x.dim() == 0 for x in plain):
        return
    where = ", ".join(f"{tuple(x.shape)} on {'cuda:0' if isinstance(x, OnCard) else 'cpu'}" for x in tensors[:6])
    raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {where}, at {_line().ours}")


def _note_waits(func: Any, args: Any, carded: list[OnCard]) -> None:
    """Note what makes the host wait."""
    if not carded:
        return
    if func.overloadpacket in _BLOCKING:
        _note(_BLOCKING[func.overloadpacket])
    elif func in _INDEX:
        indices = [x for x in args[1] if isinstance(x, torch.Tensor)]
        value = args[2] if len(args) > 2 else None
        filled = value is not None and value.numel() == 1 and not isinstance(value, OnCard)  # torch fills by the mask
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices) and not (filled and len(indices) == 1):
            _note("boolean index")
        elif any(not isinstance(x, OnCard) for x in indices):
            _note("index from the host")


def _launch(func: Any, carded: list[OnCard], args: Any, kwargs: Any, out: Any) -> None:
    """Keep the order of kernels in mind; views launch none."""
    returned = func._schema.returns
    if any(r.alias_info is not None and not r.alias_info.is_write for r in returned):
        return
    changed = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            changed += [x.inner for x in tree_flatten(value)[0] if isinstance(x, OnCard)]
    made = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
    timeline().launch([x.inner for x in carded], [*made, *changed], str(func))


def _move(func: Any, tensors: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
    """Copies: between devices they make the host wait, unless they are told not to and the host's memory is pinned."""
    source = tensors[-1]
    if func is aten.copy_.default:
        target, eager = isinstance(tensors[0], OnCard), bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    else:
        device = kwargs.pop("device", None)
        target = isinstance(source, OnCard) or (device is not None and torch.device(device).type == "cuda")
        eager = bool(kwargs.get("non_blocking"))
        pinned = bool(kwargs.pop("pin_memory", False))
    out = func(*_bare(args), **_bare(kwargs))
    came = isinstance(source, OnCard)
    if target or came:
        timeline().launch([source.inner] if isinstance(source, OnCard) else [], [out] if target else [], str(func))
    if came and not target:
        if eager and is_pinned(out):
            timeline().to_pinned(out, out)
        else:
            _note("copy to the host")
    if target and not came and source.dim() + source.numel() > 0:
        if eager and is_pinned(source):
            timeline().from_pinned(source)
        else:
            _note("copy from the host")
    if func is aten._to_copy.default and not target and pinned:
        _pin(out)
    return _wrapped(func, tensors, out, target)


_pinned_storages: dict[int, torch.UntypedStorage] = {}


def _pin(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    _pinned_storages[storage._cdata] = storage  # kept, so that no other storage gets its address
    return tensor


def _line() -> Read:
    """Where Python stands."""
    frame, line, ours = sys._getframe(2), "", ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in _HERE and not name.startswith((_TORCH, "<")) and f"{Path(name).parent.name}" != "contextlib":
            path = Path(name)
            place = f"{'/'.join(path.parts[-3:])}:{frame.f_lineno} {frame.f_code.co_name}"
            line = line or place
            if "evilm" in path.parts[-4:-1] and "site-packages" not in path.parts:
                ours = place
                break
        frame = frame.f_back
    return Read("", line or "a thread of autograd", ours or line)


_cards: list["PretendCard"] = []


def _note(what: str) -> None:
    """The host waits for the card, all of it."""
    timeline().drain()
    _cards[-1].reads.append(_line()._replace(what=what))


class _Reducer:
    """DDP's reducer, whose C++ makes the buckets of gradients: on the card, like the gradients.

    Buckets stay as they are first: C++ would write the order of new ones by itself into memory that is not there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _from_card(torch.empty):
            self._real = _REAL_REDUCER(*args, **kwargs)

    def _rebuild_buckets(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value):
            return value

        def called(*args: Any, **kwargs: Any) -> Any:
            with _from_card(torch.empty):
                return value(*args, **kwargs)

        return called


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
            _timelines.append(self.timeline)
            stack.callback(_timelines.remove, self.timeline)
            _cards.append(self)
            stack.callback(_cards.remove, self)
            stack.enter_context(_Mode())
            stack.enter_context(_Front())
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
            "synchronize": lambda *_: _note("synchronize"), "empty_cache": lambda: None,
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
        reducer = [(torch.distributed, "Reducer", _Reducer), check]
        others = [
            *reducer,
            (torch, "autocast", _CudaAutocast),
            (torch._C, "_group_tensors_by_device_and_dtype", _groups),
        ]
        return [*((cuda, name, value) for name, value in values.items()), *tensor, *health, *others]


def _groups(lists: Any, with_indices: bool = False) -> Any:
    """Tensors by device and dtype, which C++ would take for the CPU's."""
    found: dict[Any, Any] = {}
    for (device, dtype), (groups, indices) in _REAL_GROUPS(lists, with_indices).items():
        on_card = isinstance(groups[0][0], OnCard)
        if any(isinstance(x, OnCard) != on_card for x in groups[0]):
            raise RuntimeError(f"tensors of one group are on more than one device, at {_line().ours}")
        found[(CUDA if on_card else device), dtype] = (groups, indices)
    return found
