"""Which model it is: one fingerprint of settings, weights and how it was masked, and the file that says the latter."""

import hashlib
from typing import Any

from evilm import storage
from evilm.config.base import fingerprint, validate
from evilm.config.train import ObjectivesConfig
from evilm.errors import CheckpointError
from evilm.model import pretrained
from evilm.model.student import KIND, WEIGHTS

OBJECTIVES_FILE = "pretrain.json"


def model_fingerprint(model: str) -> str:
    """The fingerprint of the student saved at `model`, by which its scores and its MLflow run name it.

    Raises:
        CheckpointError: no model is there, or its training has not ended.
    """
    content = pretrained.read_config(model, KIND)
    try:
        weights = hashlib.sha256(storage.read_bytes(storage.join(model, WEIGHTS))).hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{model} has no {WEIGHTS}; the training that writes it has not ended") from None
    objectives, _ = read_objectives(model)
    return fingerprint({"config": content["config"], "weights": weights, "objectives": objectives.model_dump()})


def read_objectives(model: str) -> tuple[ObjectivesConfig, str]:
    """How regions were hidden in pre-training, and of which tokenizer the codes were; defaults where nobody says."""
    place = storage.join(model, OBJECTIVES_FILE)
    if not storage.exists(place):
        return validate(ObjectivesConfig, {}), ""
    content: dict[str, Any] = dict(storage.read_json(place))
    tokenizer = str(content.pop("tokenizer", ""))
    return validate(ObjectivesConfig, content, where=place), tokenizer
