"""Weights in safetensors beside a JSON config: written, read and checked the same way for every model."""

import platform
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import transformers
from torch import Tensor, nn

import evilm
from evilm import storage
from evilm.config.base import Config
from evilm.errors import CheckpointError, ShardError

CONFIG = "config.json"


def versions() -> dict[str, str]:
    """Versions of what wrote a model."""
    return {
        "evilm": evilm.__version__,
        "python": platform.python_version(),
        "timm": timm.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def weight_bytes(state: dict[str, Tensor]) -> bytes:
    """A state dict as safetensors bytes; equal weights give equal bytes on every machine."""
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def save(uri: str, kind: str, config: Config, files: dict[str, dict[str, Tensor]], **extra: Any) -> None:
    """Write weight files, then the config, which thereby says that the weights are all there."""
    for name, state in files.items():
        storage.write_bytes(storage.join(uri, name), weight_bytes(state))
    content = {"kind": kind, "config": config.model_dump(mode="json"), "versions": versions(), **extra}
    storage.write_json(storage.join(uri, CONFIG), content)


def read_config(uri: str, kind: str) -> dict[str, Any]:
    """The config file of a saved model of that kind.

    Raises:
        CheckpointError: none is there, or it belongs to another kind of model.
    """
    try:
        content = storage.read_json(storage.join(uri, CONFIG))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{uri} holds no {kind}: there is no {CONFIG}; give the folder it was saved to") from None
    except ShardError as error:
        raise CheckpointError(str(error)) from None
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        raise CheckpointError(f"{uri} holds {found or 'no evilm model'!r}, not a {kind}; give the folder of a {kind}")
    return content


def read_weights(uri: str, name: str) -> dict[str, Tensor]:
    """The tensors of one weight file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    place = storage.join(uri, name)
    try:
        return safetensors.torch.load(storage.read_bytes(place))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{place} is missing; the model was not saved whole, save it again") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{place} is damaged ({error}); save it again or take another copy") from None


def load_into(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy weights into `module`, which must have exactly these names and shapes.

    Raises:
        CheckpointError: names or shapes differ; the line names how many and the first of each.
    """
    own = module.state_dict()
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            for name in sorted(own.keys() & state.keys())
            if own[name].shape != state[name].shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(names)} {kind}, e.g. {names[0]}" for kind, names in faults.items() if names)
        raise CheckpointError(f"{where} does not fit the model: {found}; the config beside it must be the one it had")
    module.load_state_dict(state)
