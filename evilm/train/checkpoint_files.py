"""Training checkpoints: weights and AdamW's moments as safetensors, the rest as JSON. Never a pickle.

The files of the folder are described in `evilm.model.checkpoint_folder`. Without `digests.json`, or with a file that
does not match it, a folder is not a checkpoint. The generators of masks, words, negatives and dropout are functions of
(seed, epoch, step, clip), so no random state has to be kept.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from evilm.model.checkpoint_folder import DIGESTS, EMA, OPTIMIZER, STATE, WEIGHTS, sha256, unusable, verify


@dataclass(frozen=True)
class Snapshot:
    """A training as it stood after a step, copied to main memory: what is trained may go on meanwhile."""

    weights: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    """AdamW's state tensors by `parameter/key`."""
    ema: dict[str, torch.Tensor]
    state: dict[str, Any]
    """JSON-able: step, metrics, shape of the run."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Files of a published model beside its weights, by file name: settings, vocabulary, preprocessing."""


def take_snapshot(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    ema: nn.Module | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Snapshot:
    """Copy weights, moments and state.

    Args:
        module: what is trained; its `state_dict` is kept.
        optimizer: over `module.named_parameters()`; its state tensors are kept by parameter name.
        files: what a published model has beside its weights, so that the checkpoint can be loaded as a model.
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
        files=dict(files or {}),
    )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def files_beside(write: Callable[[str], None]) -> dict[str, bytes]:
    """Collect the small files that `write` puts into a folder, by their names below it."""
    with tempfile.TemporaryDirectory(prefix="evilm-") as folder:
        write(folder)
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_snapshot(folder: Path, snapshot: Snapshot) -> dict[str, Any]:
    """Write a checkpoint into an empty local folder, all but `digests.json`.

    Returns:
        What belongs into `digests.json`, to be written after everything else has reached its place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(snapshot.weights, folder / WEIGHTS)
    save_file(snapshot.moments, folder / OPTIMIZER)
    if snapshot.ema:
        save_file(snapshot.ema, folder / EMA)
    (folder / STATE).write_text(json.dumps(snapshot.state, sort_keys=True))
    for name, data in snapshot.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"files": files, "step": snapshot.state.get("step")}


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    ema: nn.Module | None = None,
) -> None:
    """Write a whole checkpoint into an empty local folder."""
    digests = write_snapshot(folder, take_snapshot(module, optimizer, state, ema))
    (folder / DIGESTS).write_text(json.dumps(digests, sort_keys=True))


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
        module.load_state_dict(load_file(folder / WEIGHTS))
        moments = load_file(folder / OPTIMIZER)
        state = json.loads((folder / STATE).read_text())
        if ema is not None:
            ema.load_state_dict(load_file(folder / EMA))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable(folder.name, error) from None
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
    """Return a state tensor as AdamW keeps it: `step` on the CPU unless fused, moments in the parameter's layout.

    Fused kernels go through memory, not through indices: moments in another layout would belong to other weights.
    """
    if key == "step":
        return value.to(parameter.device) if fused else value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
