"""Verify the folder of a training checkpoint and read the model in it.

Written by `evilm.train.checkpoint_files`. A checkpoint holds `weights.safetensors` and `optimizer.safetensors`,
`ema.safetensors` if a moving average of the weights is kept, `state.json`, the files that a published model has beside
its weights (settings, vocabulary, preprocessing), and `digests.json` with the SHA-256 of the others, written last.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from evilm.errors import CheckpointError
from evilm.io import storage
from evilm.model.pretrained import titled

DIGESTS = "digests.json"
WEIGHTS, OPTIMIZER, EMA, STATE = "weights.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"
_EMA_PREFIX = "module."  # the name of the module within AveragedModel


def verify(folder: Path, name: str = "") -> None:
    """Compare every file of a local checkpoint with its digest.

    `name` is that of the checkpoint in messages, needed if the folder is a copy.

    Raises:
        CheckpointError: a file is missing, cut short or changed.
    """
    try:
        wanted: dict[str, Any] = json.loads((folder / DIGESTS).read_text())["files"]
        for file, digest in wanted.items():
            size = (folder / file).stat().st_size
            if size != digest["bytes"]:
                raise ValueError(f"{file} has {size} bytes instead of {digest['bytes']}")
            if sha256(folder / file) != digest["sha256"]:
                raise ValueError(f"{file} has another SHA-256 than when it was written")
    except FileNotFoundError as error:
        raise unusable(name or folder.name, f"{Path(error.filename).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unusable(name or folder.name, error) from None


def read_model(uri: str, prefix: str) -> dict[str, Tensor] | None:
    """Read the model weights of a checkpoint: the moving average if there is one, else the weights themselves.

    Every file except the optimizer state is read and compared with its digest.

    Args:
        uri: folder of the checkpoint, a local path or URI.
        prefix: prefix of the model's weight names, `student.` or `tokenizer.`.

    Returns:
        Weights by the model's own names; None if `uri` is not a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or the checkpoint belongs to another kind of model.
    """
    if not {DIGESTS, WEIGHTS} & set(storage.list_names(uri)):
        return None
    advice = "use another checkpoint"
    try:
        digests: dict[str, Any] = json.loads(storage.read_bytes(storage.join(uri, DIGESTS)))["files"]
        files = {name: _read(uri, name, digest) for name, digest in digests.items() if name != OPTIMIZER}
        name, prefix = (EMA, _EMA_PREFIX + prefix) if EMA in files else (WEIGHTS, prefix)
        weights = safetensors.torch.load(files[name])
    except FileNotFoundError as error:
        raise unusable(uri, f"{Path(str(error.filename or error)).name} is missing", advice) from None
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise unusable(uri, error, advice) from None
    found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if not found:
        other = sorted({key.removeprefix(_EMA_PREFIX).split(".")[0] for key in weights} - {"n_averaged"})
        kind = prefix.removeprefix(_EMA_PREFIX).rstrip(".")
        raise unusable(uri, f"it holds {' and '.join(map(titled, other))}, not {titled(kind)}", advice)
    return found


def _read(uri: str, name: str, digest: dict[str, Any]) -> bytes:
    data = storage.read_bytes(storage.join(uri, name))
    if len(data) != digest["bytes"]:
        raise ValueError(f"{name} has {len(data)} bytes instead of {digest['bytes']}")
    if hashlib.sha256(data).hexdigest() != digest["sha256"]:
        raise ValueError(f"{name} has another SHA-256 than when it was written")
    return data


def sha256(path: Path) -> str:
    """Return the digest of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unusable(name: str, reason: object, advice: str = "start over with --overwrite") -> CheckpointError:
    """Build the error for a checkpoint that can't be used."""
    text = " ".join(str(reason).split())[:300]
    return CheckpointError(f"checkpoint {name} can't be used: {text}; {advice}")
