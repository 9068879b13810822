"""Training checkpoints: weights and AdamW's moments as safetensors, the rest as JSON. Never a pickle.

A checkpoint is a folder: `weights.safetensors`, `optimizer.safetensors`, `ema.safetensors` where a mean of the weights
is kept, `state.json`, and last of all `digests.json`, the SHA-256 of the others. Without it, or with a file that does
not match it, a folder is no checkpoint. The generators of masks, words, negatives and dropout are functions of (seed,
epoch, step, clip), so no random state has to be kept.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from evilm.errors import CheckpointError

DIGESTS = "digests.json"
_WEIGHTS, _OPTIMIZER, _EMA, _STATE = "weights.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"


@dataclass(frozen=True)
class Snapshot:
    """A training as it stood after a step, copied to main memory: what is trained may go on meanwhile."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    """AdamW's state tensors by `parameter/key`."""
    ema: dict[str, torch.Tensor]
    state: dict[str, Any]
    """JSON-able: step, metrics, shape of the run."""


def take_snapshot(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], ema: nn.Module | None = None
) -> Snapshot:
    """Copy weights, moments and state.

    Args:
        module: what is trained; its `state_dict` is kept.
        optimizer: over `module.named_parameters()`; its state tensors are kept by parameter name.
        state: JSON-able.
        ema: the module with the mean weights, where there is one.
    """
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{key}"] = _copy(torch.as_tensor(value))
    return Snapshot(
        weights={name: _copy(tensor) for name, tensor in module.state_dict().items()},
        moments=moments,
        ema={name: _copy(tensor) for name, tensor in ema.state_dict().items()} if ema else {},
        state=json.loads(json.dumps(state)),
    )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def write_snapshot(folder: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Write a checkpoint into an empty local folder, all but `digests.json`.

    Returns:
        What belongs into `digests.json`, to be written after everything else has reached its place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(snapshot.weights, folder / _WEIGHTS)
    save_file(snapshot.moments, folder / _OPTIMIZER)
    if snapshot.ema:
        save_file(snapshot.ema, folder / _EMA)
    (folder / _STATE).write_text(json.dumps(snapshot.state, sort_keys=True))
    files = {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
    return {"files": files, "step": snapshot.state.get("step")}


def save_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write a whole checkpoint into an empty local folder."""
    digests = write_snapshot(folder, take_snapshot(module, optimizer, state))
    (folder / DIGESTS).write_text(json.dumps(digests, sort_keys=True))


def verify(folder: Path, name: str = "") -> None:
    """Compare every file of a local checkpoint with its digest.

    Args:
        folder: where it is.
        name: what to call it in an error, where the folder is a copy.

    Raises:
        CheckpointError: a file is missing, cut short or changed.
    """
    try:
        wanted: dict[str, Any] = json.loads((folder / DIGESTS).read_text())["files"]
        for file, digest in wanted.items():
            size = (folder / file).stat().st_size
            if size != digest["bytes"]:
                raise ValueError(f"{file} has {size} bytes instead of {digest['bytes']}")
            if _sha256(folder / file) != digest["sha256"]:
                raise ValueError(f"{file} has another SHA-256 than when it was written")
    except FileNotFoundError as error:
        raise _unusable(name or folder.name, f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(name or folder.name, error) from None


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: nn.Module | None = None
) -> dict[str, Any]:
    """Verify a local checkpoint, and restore `module`, `optimizer` and `ema` in place.

    Returns:
        The state that was saved with them.

    Raises:
        CheckpointError: a file is missing or damaged, or it belongs to another model.
    """
    verify(folder)
    try:
        module.load_state_dict(load_file(folder / _WEIGHTS))
        moments = load_file(folder / _OPTIMIZER)
        state = json.loads((folder / _STATE).read_text())
        if ema is not None:
            ema.load_state_dict(load_file(folder / _EMA))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(folder.name, error) from None
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        parameter, key = name.rsplit("/", 1)
        by_name.setdefault(parameter, {})[key] = value
    fused = bool(optimizer.defaults.get("fused"))
    for name, parameter in module.named_parameters():
        if name in by_name:
            optimizer.state[parameter] = {
                key: _as_kept(key, value, parameter, fused) for key, value in by_name[name].items()
            }
    return state


def _as_kept(key: str, value: torch.Tensor, parameter: nn.Parameter, fused: bool) -> torch.Tensor:
    """A state tensor as AdamW keeps it: `step` on the CPU but for fused kernels, moments in the parameter's layout.

    Fused kernels go through memory, not through indices: moments in another layout would belong to other weights.
    """
    if key == "step":
        return value.to(parameter.device) if fused else value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _unusable(name: str, reason: object) -> CheckpointError:
    text = " ".join(str(reason).split())[:300]
    return CheckpointError(f"checkpoint {name} can't be used: {text}; start over with --overwrite")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
