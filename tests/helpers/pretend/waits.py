"""Where the host waits for the pretended card, by the line of Python that makes it wait; and its page-locked memory."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from helpers.pretend.streams import timeline

_TORCH = str(Path(torch.__file__).parent)
_HERE = {str(path) for path in Path(__file__).parent.glob("*.py")}


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


reads: list[list[Read]] = []
"""Those of each active card, the one in use last."""


def note(what: str) -> None:
    """The host waits for the card, all of it."""
    timeline().drain()
    reads[-1].append(python_line()._replace(what=what))


def python_line() -> Read:
    """Return the line of Python that runs, outside of this package and of torch."""
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


_pinned_storages: dict[int, torch.UntypedStorage] = {}


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Page-lock the memory of a tensor of the CPU."""
    storage = tensor.untyped_storage()
    _pinned_storages[storage._cdata] = storage  # kept, so that no other storage gets its address
    return tensor


def is_pinned_storage(tensor: torch.Tensor) -> bool:
    """Return whether the memory of a tensor of the CPU was page-locked by `pin`."""
    return tensor.untyped_storage()._cdata in _pinned_storages
