"""A strict linear probe: features of the frozen model, computed once, and one linear layer on them.

Small data sets are solved exactly by scikit-learn, large ones (Kinetics-400) by steps of torch. The feature and the
strength of the regularisation are chosen on val, and test is scored once.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

logger = logging.getLogger(__name__)

C_VALUES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Inverse strengths of the regularisation that are tried, as scikit-learn's C."""
_EXACT_ROWS = 20_000
_EPOCHS, _BATCH, _LR = 30, 1024, 0.01


@dataclass(frozen=True)
class ProbeSplit:
    """Features of the videos of a split by name, and their classes."""

    features: dict[str, Float[np.ndarray, "clip dim"]]
    labels: Int[np.ndarray, " clip"]


@dataclass(frozen=True)
class ProbeResult:
    """The chosen probe and what it predicts on test."""

    feature: str
    c: float
    val_accuracy: float
    probabilities: Float[np.ndarray, "clip class"]
    """Of the test videos."""


def probe(train: ProbeSplit, val: ProbeSplit, test: ProbeSplit, num_classes: int) -> ProbeResult:
    """Fit a probe for each feature and strength on train, choose on val, and predict test."""
    best: tuple[float, str, float] = (-1.0, "", 0.0)
    chosen = np.zeros((len(test.labels), num_classes))
    for feature, vectors in train.features.items():
        mean, scale = vectors.mean(0), vectors.std(0) + 1e-6
        scaled = [(split.features[feature] - mean) / scale for split in (train, val, test)]
        for c in C_VALUES:
            probabilities = _fit(scaled[0], train.labels, c, num_classes, scaled[1:])
            accuracy = float((probabilities[0].argmax(1) == val.labels).mean())
            logger.info("probe on %s, C = %g: %.1f %% on val", feature, c, 100 * accuracy)
            if accuracy > best[0]:
                best, chosen = (accuracy, feature, c), probabilities[1]
    return ProbeResult(best[1], best[2], best[0], chosen)


def _fit(
    vectors: Float[np.ndarray, "clip dim"],
    labels: Int[np.ndarray, " clip"],
    c: float,
    num_classes: int,
    others: list[Float[np.ndarray, "clip dim"]],
) -> list[Float[np.ndarray, "clip class"]]:
    """Fit one linear layer, and return its probabilities for other vectors."""
    if len(vectors) > _EXACT_ROWS:
        return _descend(vectors, labels, c, num_classes, others)
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=1000).fit(vectors, labels)
    found = []
    for other in others:
        probabilities = np.zeros((len(other), num_classes))
        probabilities[:, model.classes_] = model.predict_proba(other)
        found.append(probabilities)
    return found


def _descend(
    vectors: np.ndarray, labels: np.ndarray, c: float, num_classes: int, others: list[np.ndarray]
) -> list[np.ndarray]:
    """Fit one linear layer by Adam with cosine decay; the penalty is that of scikit-learn, |w|^2 / (2 C n)."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.from_numpy(vectors).float(), torch.from_numpy(labels)
    weight = torch.zeros(num_classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=_LR)
    steps = _EPOCHS * -(-len(inputs) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(inputs), generator=generator).split(_BATCH):
            penalty = weight.square().sum() / (2 * c * len(inputs))
            loss = F.cross_entropy(F.linear(inputs[batch], weight, bias), targets[batch]) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return [F.linear(torch.from_numpy(other).float(), weight, bias).softmax(-1).numpy() for other in others]
