"""Write, read and check a saved model: weights in safetensors beside a JSON config.

The files follow the conventions of transformers: `config.json` holds the settings of the model at its top level, beside
`model_type`, `architectures`, `dtype`, the versions of the software that wrote it, and `sha256`, digests of the files
beside it, with which they are compared when they are read. Models without digests can be read too.
"""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import evilm
from evilm.config.base import Config, with_new_names
from evilm.errors import CheckpointError, ConfigError, ShardError
from evilm.io import storage

CONFIG = "config.json"
VOCAB = "vocab"
"""Folder of the vocabulary, beside the weights."""
DIGESTS = "sha256"
"""Key of the digests by file name, in the config and in `task.json`."""


class _Kind(NamedTuple):
    """The names of a kind of model in its config, and the config keys that are not settings."""

    model_type: str
    architecture: str
    facts: tuple[str, ...] = ()


_KINDS = {
    "student": _Kind("evilm", "EViLM"),
    "tokenizer": _Kind("evilm_tokenizer", "VideoTokenizer", ("clip", "fingerprint")),
}
_TITLES = {"student": "an E-ViLM model", "tokenizer": "a video tokenizer", "head": "a task head"}
"""The kinds in messages, and the part of a checkpoint that is added to a model."""
_ABOUT = (DIGESTS, "architectures", "dtype", "model_type", "transformers_version", "versions")


def versions() -> dict[str, str]:
    """Return the versions of the software that writes a model."""
    return {
        "evilm": evilm.__version__,
        "python": platform.python_version(),
        "timm": version("timm"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def weight_bytes(state: dict[str, Tensor]) -> bytes:
    """Serialise a state dict to safetensors; equal weights give equal bytes on every machine."""
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def save_weights(uri: str, name: str, state: dict[str, Tensor]) -> dict[str, str]:
    """Write a weight file and return its digest by its name."""
    data = weight_bytes(state)
    storage.write_bytes(storage.join(uri, name), data)
    return {name: hashlib.sha256(data).hexdigest()}


def save(
    uri: str,
    kind: str,
    config: Config,
    files: dict[str, dict[str, Tensor]],
    beside: Sequence[str] = (),
    **facts: Any,
) -> None:
    """Write weight files, then the config, whose presence marks the weights as complete.

    Args:
        files: weights by file name.
        beside: other files that belong to the weights; the digests of those that are there are kept as well.
        **facts: further keys of the config.
    """
    digests: dict[str, str] = {}
    for name, state in files.items():
        digests |= save_weights(uri, name, state)
    for name in beside:
        if storage.exists(place := storage.join(uri, name)):
            digests[name] = hashlib.sha256(storage.read_bytes(place)).hexdigest()
    weights = next(tensor for state in files.values() for tensor in state.values() if tensor.is_floating_point())
    save_config(uri, kind, config, str(weights.dtype).removeprefix("torch."), digests, **facts)


def save_config(
    uri: str,
    kind: str,
    config: Config,
    dtype: str = "float32",
    digests: Mapping[str, str] | None = None,
    **facts: Any,
) -> None:
    """Write the config of a model with weights of this dtype."""
    known = _KINDS[kind]
    assert set(facts) <= set(known.facts)
    content = {
        **config.model_dump(mode="json"),
        **facts,
        **({DIGESTS: dict(digests)} if digests else {}),
        "architectures": [known.architecture],
        "dtype": dtype,
        "model_type": known.model_type,
        "transformers_version": version("transformers"),
        "versions": versions(),
    }
    storage.write_json(storage.join(uri, CONFIG), content)


def model_type(uri: str, default: str) -> str:
    """Read the `model_type` of the model at `uri`; `default` if its config is missing or has none."""
    try:
        content = storage.read_json(storage.join(uri, CONFIG))
    except (FileNotFoundError, NotADirectoryError, ShardError):
        return default
    return str(content.get("model_type", default)) if isinstance(content, dict) else default


def titled(kind: str) -> str:
    """Return what a kind of model is called in messages, with its article."""
    return _TITLES.get(kind, f"a model of type {kind!r}")


def read_config(uri: str, kind: str) -> dict[str, Any]:
    """Read the config file of a saved model of that kind: its settings under `config`, beside the other keys.

    Raises:
        CheckpointError: there is none, or it belongs to another kind of model.
    """
    try:
        content = storage.read_json(storage.join(uri, CONFIG))
    except (FileNotFoundError, NotADirectoryError):
        what = {"student": "E-ViLM model"}.get(kind, f"video {kind}")
        raise CheckpointError(f"{uri} holds no {what}: there is no {CONFIG}; name the folder it was saved to") from None
    except ShardError as error:
        raise CheckpointError(str(error)) from None
    content = content if isinstance(content, dict) else {}
    if "config" in content:  # models of evilm before model_type was written
        found, content = content.get("kind"), {"dtype": "float32", **content}
    else:
        names = {known.model_type: name for name, known in _KINDS.items()}
        found = names.get(content.get("model_type", ""), content.get("model_type"))
    if found != kind:
        other = titled(found) if found else "another kind of model"
        raise CheckpointError(f"{uri} holds {other}, not {titled(kind)}; name the folder of {titled(kind)}")
    if "config" in content:
        return content | {"config": with_new_names(content["config"])}
    apart = {*_ABOUT, *_KINDS[kind].facts}
    about = {name: content[name] for name in apart if name in content}
    return about | {"config": with_new_names({name: value for name, value in content.items() if name not in apart})}


def read_weights(uri: str, name: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors of one weight file.

    `content` is the result of `read_config`, or another mapping with the digests of files.

    Raises:
        CheckpointError: the file is missing, damaged, or not the one that was saved.
    """
    place = storage.join(uri, name)
    try:
        data = storage.read_bytes(place)
        check_digest(uri, name, content, data)
        return safetensors.torch.load(data)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{place} is missing; the model was saved incompletely, save it again") from None
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{place} is damaged ({error}); save it again or take another copy") from None


def check_digest(uri: str, name: str, content: Mapping[str, Any], data: bytes) -> None:
    """Compare the bytes of a file with the digest that was saved, if there is one.

    Raises:
        CheckpointError: they differ.
    """
    digests = content.get(DIGESTS)
    wanted = digests.get(name) if isinstance(digests, dict) else None
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        place = storage.join(uri, name)
        raise CheckpointError(
            f"{place} has another SHA-256 than when the model was saved: it is damaged or another model's; "
            "use another copy"
        )


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    """Look up a dtype by its name.

    Raises:
        ConfigError: weights can't have this dtype.
    """
    dtype = name if isinstance(name, torch.dtype) else getattr(torch, str(name), None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype = {str(name)!r}: use float32, bfloat16 or float16")
    assert isinstance(dtype, torch.dtype)
    return dtype


def as_device(name: str | torch.device) -> torch.device:
    """Look up a device by its name and check that it is available.

    Raises:
        ConfigError: it is not available.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = " ".join(str(error).splitlines()[0].split())
        raise ConfigError(f"device = {str(name)!r} can't be used here ({reason}); use cpu") from None
    return device


def load_into(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy weights into `module`, which must have exactly these names and shapes.

    Raises:
        CheckpointError: names or shapes differ; the message counts them and shows the first of each kind.
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
        raise CheckpointError(f"{where} does not fit the model: {found}; restore the config it was saved with")
    module.load_state_dict(state)
