"""Compute the fingerprint of a model from its settings, weights and masking; read the file of masking settings."""

import hashlib
from typing import Any

from evilm.config.base import fingerprint, validate
from evilm.config.training import ObjectivesConfig
from evilm.errors import CheckpointError
from evilm.io import storage
from evilm.model import checkpoint_folder, pretrained
from evilm.model.evilm_model import KIND, PREFIX, WEIGHTS
from evilm.model.tokenizers.base_tokenizer import load_tokenizer
from evilm.model.tokenizers.semantic_vq import VideoTokenizer

OBJECTIVES_FILE = "pretrain.json"


def model_fingerprint(model: str) -> str:
    """Return the fingerprint of the model saved at `model`, as its scores and its MLflow run record it.

    A checkpoint has the same fingerprint as the model published from it.

    Raises:
        CheckpointError: there is no model, it is damaged, or its training has not ended.
    """
    kept = checkpoint_folder.read_model(model, PREFIX)
    content = pretrained.read_config(model, KIND)
    try:
        data = storage.read_bytes(storage.join(model, WEIGHTS)) if kept is None else pretrained.weight_bytes(kept)
    except FileNotFoundError:
        raise CheckpointError(f"{model} has no {WEIGHTS}; the training that writes it has not ended") from None
    weights = hashlib.sha256(data).hexdigest()
    objectives, _ = read_objectives(model)
    return fingerprint({"config": content["config"], "weights": weights, "objectives": objectives.model_dump()})


def tokenizer_fingerprints(uri: str, name: str) -> dict[str, str]:
    """Return the fingerprints of a video tokenizer under `name` and, if saved, of its decoder under `{name}_decoder`.

    Raises:
        CheckpointError: there is no tokenizer, or it is damaged.
    """
    tokenizer = load_tokenizer(uri)
    # The training run is found by this fingerprint, which covers only what codes depend on.
    fingerprints = {name: tokenizer.fingerprint()}
    if isinstance(tokenizer, VideoTokenizer) and tokenizer.decoder is not None:
        weights = pretrained.weight_bytes(tokenizer.decoder.state_dict())
        fingerprints[f"{name}_decoder"] = hashlib.sha256(weights).hexdigest()[:16]
    return fingerprints


def read_objectives(model: str) -> tuple[ObjectivesConfig, str]:
    """Read the pre-training objectives and the fingerprint of the codes' tokenizer; defaults if there is no file."""
    place = storage.join(model, OBJECTIVES_FILE)
    if not storage.exists(place):
        return validate(ObjectivesConfig, {}), ""
    content: dict[str, Any] = dict(storage.read_json(place))
    tokenizer = str(content.pop("tokenizer", ""))
    return validate(ObjectivesConfig, content, where=place), tokenizer
