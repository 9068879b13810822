"""Sends the operations of torch through the pretended card: refuses mixed devices, notes waits, keeps their order."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from helpers.pretend.streams import timeline
from helpers.pretend.tensor import CUDA, DEPTH, ON_HOST, OnCard, bare, is_pinned, to
from helpers.pretend.waits import note, pin, python_line

aten = torch.ops.aten
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


class Front(TorchFunctionMode):
    """Says which card is meant by "cuda", which C++ would ask the driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.to, torch.Tensor.cuda):
            return ON_HOST[func](*args, **kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            if func in (torch.tensor, torch.as_tensor):  # made on the host, then copied, as on a card
                del kwargs["device"]
                return to(func(*args, **kwargs), CUDA)
            kwargs["device"] = CUDA
        return func(*args, **kwargs)


class Mode(TorchDispatchMode):
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
        on_card = bool(carded) or bool(DEPTH.value and not tensors)
        if kwargs.get("device") is not None:  # of "cpu" C++ can't know whether it means the card
            on_card = on_card or torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        pinned = bool(kwargs.pop("pin_memory", False))
        out = func(*bare(args), **bare(kwargs))
        if on_card:
            _launch(func, carded, args, kwargs, out)
        elif pinned:
            pin(out)
        return _wrapped(func, tensors, out, on_card)


OnCard.dispatch_mode = Mode  # for threads that it is not active in, such as those of autograd


def _wrapped(func: Any, tensors: list[torch.Tensor], out: Any, on_card: bool) -> Any:
    """Results as tensors of the card; what an operation changed in place is the tensor that came in."""
    came = {id(bare(x)): x for x in tensors} if func._schema.is_mutable else {}

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
        raise RuntimeError(f"{func}: NCCL takes no tensors of the CPU, at {python_line().ours}")
    if not carded or not plain:
        return
    if func in _INDEX and isinstance(tensors[0], OnCard):  # indices are moved to the card, and a single value too
        return
    scalars = torch.Tag.pointwise in func.tags or func in _SCALARS
    if scalars and not func._schema.name.startswith("aten::_foreach") and all(x.dim() == 0 for x in plain):
        return
    where = ", ".join(f"{tuple(x.shape)} on {'cuda:0' if isinstance(x, OnCard) else 'cpu'}" for x in tensors[:6])
    expected = f"{func}: expected all tensors to be on the same device"
    raise RuntimeError(f"{expected}, but found {where}, at {python_line().ours}")


def _note_waits(func: Any, args: Any, carded: list[OnCard]) -> None:
    """Note what makes the host wait."""
    if not carded:
        return
    if func.overloadpacket in _BLOCKING:
        note(_BLOCKING[func.overloadpacket])
    elif func in _INDEX:
        indices = [x for x in args[1] if isinstance(x, torch.Tensor)]
        value = args[2] if len(args) > 2 else None
        filled = value is not None and value.numel() == 1 and not isinstance(value, OnCard)  # torch fills by the mask
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices) and not (filled and len(indices) == 1):
            note("boolean index")
        elif any(not isinstance(x, OnCard) for x in indices):
            note("index from the host")


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
    out = func(*bare(args), **bare(kwargs))
    came = isinstance(source, OnCard)
    if target or came:
        timeline().launch([source.inner] if isinstance(source, OnCard) else [], [out] if target else [], str(func))
    if came and not target:
        if eager and is_pinned(out):
            timeline().to_pinned(out, out)
        else:
            note("copy to the host")
    if target and not came and not timeline().holds(source):  # DDP's C++ brings sums of gradients without a wrapper
        if eager and is_pinned(source):
            timeline().from_pinned(source)
        else:
            note("copy from the host")
    if func is aten._to_copy.default and not target and pinned:
        pin(out)
    return _wrapped(func, tensors, out, target)
