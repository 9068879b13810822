"""Training checkpoints: weights and AdamW's moments as safetensors, the rest as JSON. Never a pickle.

A checkpoint is a folder: `weights.safetensors`, `optimizer.safetensors`, `state.json`. The generators of masks, words,
negatives and dropout are functions of (seed, epoch, step, clip), so no random state has to be kept.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from evilm.errors import CheckpointError

_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Write a checkpoint into an empty folder.

    Args:
        folder: local folder.
        module: its `state_dict` is kept.
        optimizer: over `module.named_parameters()`; its state tensors are kept by parameter name.
        state: JSON-able: step, shape of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().cpu().contiguous().clone() for name, t in module.state_dict().items()}, folder / _WEIGHTS
    )
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}/{key}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    save_file(moments, folder / _OPTIMIZER)
    (folder / _STATE).write_text(json.dumps(state, sort_keys=True))


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore `module` and `optimizer` in place.

    Returns:
        The state that was saved with them.

    Raises:
        CheckpointError: a file is missing, damaged, or of another model.
    """
    try:
        module.load_state_dict(load_file(folder / _WEIGHTS))
        moments = load_file(folder / _OPTIMIZER)
        state = json.loads((folder / _STATE).read_text())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"checkpoint {folder.name} can't be used: {reason}; start over with --overwrite"
        ) from None
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        parameter, key = name.rsplit("/", 1)
        by_name.setdefault(parameter, {})[key] = value
    for name, parameter in module.named_parameters():
        if name in by_name:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in by_name[name].items()
            }
    return state
