"""Identify a model: one fingerprint of settings, weights and masking, and the file that holds the latter."""

import hashlib
from typing import Any

from evilm.config.base import fingerprint, validate
from evilm.config.training import ObjectivesConfig
from evilm.errors import CheckpointError
from evilm.io import storage
from evilm.model import checkpoint_folder, pretrained
from evilm.model.evilm_model import KIND, PREFIX, WEIGHTS
from evilm.model.tokenizers.base import load_tokenizer
from evilm.model.tokenizers.semantic_vq import VideoTokenizer

OBJECTIVES_FILE = "pretrain.json"


def model_fingerprint(model: str) -> str:
    """The fingerprint of the student saved at `model`, by which its scores and its MLflow run name it.

    A checkpoint has the fingerprint that the model published from it has.

    Raises:
        CheckpointError: no model is there, it is damaged, or its training has not ended.
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
    """The fingerprint of a video tokenizer as an input called `name`, and besides that of its decoder, if there.

    Raises:
        CheckpointError: no tokenizer is there, or it is damaged.
    """
    tokenizer = load_tokenizer(uri)
    # The one by which the run that made it is found; it covers what codes need.
    fingerprints = {name: tokenizer.fingerprint()}
    if isinstance(tokenizer, VideoTokenizer) and tokenizer.decoder is not None:
        weights = pretrained.weight_bytes(tokenizer.decoder.state_dict())
        fingerprints[f"{name}_decoder"] = hashlib.sha256(weights).hexdigest()[:16]
    return fingerprints


def read_objectives(model: str) -> tuple[ObjectivesConfig, str]:
    """Return how regions were masked in pre-training, and the tokenizer of the codes; defaults where unknown."""
    place = storage.join(model, OBJECTIVES_FILE)
    if not storage.exists(place):
        return validate(ObjectivesConfig, {}), ""
    content: dict[str, Any] = dict(storage.read_json(place))
    tokenizer = str(content.pop("tokenizer", ""))
    return validate(ObjectivesConfig, content, where=place), tokenizer
