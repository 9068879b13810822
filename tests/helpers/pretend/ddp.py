"""What PyTorch's C++ does with lists of tensors: DDP's reducer, and groups by device and dtype."""

from typing import Any

import torch

from helpers.pretend.tensor import CUDA, OnCard, from_card
from helpers.pretend.waits import python_line

_REAL_GROUPS = torch._C._group_tensors_by_device_and_dtype
_REAL_REDUCER = torch.distributed.Reducer


class Reducer:
    """DDP's reducer, whose C++ makes the buckets of gradients: on the card, like the gradients.

    Buckets stay as they are first: C++ would write the order of new ones by itself into memory that is not there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with from_card(torch.empty):
            self._real = _REAL_REDUCER(*args, **kwargs)

    def _rebuild_buckets(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value):
            return value

        def called(*args: Any, **kwargs: Any) -> Any:
            with from_card(torch.empty):
                return value(*args, **kwargs)

        return called


def group_tensors(lists: Any, with_indices: bool = False) -> Any:
    """Tensors by device and dtype, which C++ would take for the CPU's."""
    found: dict[Any, Any] = {}
    for (device, dtype), (groups, indices) in _REAL_GROUPS(lists, with_indices).items():
        on_card = isinstance(groups[0][0], OnCard)
        if any(isinstance(x, OnCard) != on_card for x in groups[0]):
            raise RuntimeError(f"tensors of one group are on more than one device, at {python_line().ours}")
        found[(CUDA if on_card else device), dtype] = (groups, indices)
    return found
