"""Recalls and accuracies are those of scikit-learn and torchmetrics where no scores tie, and ties are misses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evilm.config.stages import Benchmark
from evilm.eval.fast_retrieval import TEXTS, Embeddings, _write
from evilm.eval.label_scores import _evaluate, _sorted
from evilm.eval.linear_probe import ProbeSplit, probe
from evilm.eval.retrieval_scores import _recall_figures
from evilm.eval.task_subject import TaskSubject, open_subject
from evilm.io.outputs import Output
from evilm.items.item import Item, Kind
from evilm.items.seen_clips import write_seen
from evilm.model.metrics import Figure
from helpers.item_tables import write_items
from helpers.random_model import make_frames, make_model

CLIPS, CLASSES = 24, 7


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_recalls_of_embeddings_are_those_of_scikit_learn_and_torchmetrics(tmp_path: Path) -> None:
    from torchmetrics.retrieval import RetrievalHitRate  # here, since its import takes many seconds

    rng, num_videos = np.random.default_rng(0), 40
    videos = unit(rng, num_videos, 8)
    own = np.sort(rng.permutation(np.concatenate([np.arange(num_videos), rng.integers(0, num_videos, 80)])))
    texts = videos[own] + rng.normal(size=(len(own), 8)).astype(np.float32) * 0.6
    names = [f"v{k}" for k in range(num_videos)]
    captions = np.array([f"i{k}" for k in range(len(own))])
    _write(None, tmp_path / TEXTS, captions, np.array(names)[own], texts).close()
    figures = _recall_figures(Embeddings(str(tmp_path), names, videos).rank())
    scores = torch.from_numpy(texts @ videos.T)
    is_own = torch.from_numpy(own[:, None] == np.arange(num_videos))
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(own, scores.numpy(), k=k, labels=np.arange(num_videos))
        assert figures[f"t2v_r{k}"].value == pytest.approx(expected, abs=1e-6)
        metric = RetrievalHitRate(top_k=k)
        for name, part, right in (("t2v", scores, is_own), ("v2t", scores.T, is_own.T)):
            queries = torch.arange(len(part)).repeat_interleave(part.shape[1])
            found = metric(part.flatten(), right.flatten(), indexes=queries)
            assert figures[f"{name}_r{k}"].value == pytest.approx(float(found), abs=1e-6)


def evaluated(folder: Path, kind: Kind, answers: list[int], probabilities: np.ndarray) -> dict[str, Figure]:
    """The figures of these probabilities, with an item about each clip."""
    names = tuple(f"n{k}" for k in range(probabilities.shape[1]))
    options = names if kind == "choice" else ()
    items = [Item("test", f"i{k:02d}", f"c{k:03d}", "", names[own], options) for k, own in enumerate(answers)]
    manifest = write_items(folder / "items", kind, items, () if kind == "choice" else names)
    found = subject(folder, manifest)
    with Output(found.config, str(folder / "scores"), {}) as output:
        return _evaluate(found, output, _sorted([item.item_id for item in items], probabilities))[0]


def subject(folder: Path, manifest) -> TaskSubject:
    make_model(folder / "model")
    write_seen(str(folder / "model"), np.zeros((0, 2), dtype=np.uint64))
    config = Benchmark.model_validate({"task": "msrvtt-mc", "model": str(folder / "model")})
    return open_subject(config, make_frames(folder / "frames", CLIPS), manifest)


@pytest.mark.parametrize("kind", ["choice", "label"])
def test_accuracy_is_that_of_scikit_learn(tmp_path: Path, kind: Kind) -> None:
    rng = np.random.default_rng(1)
    answers = rng.permutation(np.arange(CLIPS) % CLASSES)
    probabilities = rng.dirichlet(np.ones(CLASSES), CLIPS)
    probabilities[:9, :] += 0.5 * np.eye(CLASSES)[answers[:9]]
    figures = evaluated(tmp_path, kind, answers.tolist(), probabilities)
    expected = accuracy_score(answers, probabilities.argmax(1))
    assert figures["accuracy"].value == pytest.approx(expected)
    assert 0.3 < expected < 1
    if kind == "label":
        top = top_k_accuracy_score(answers, probabilities, k=5, labels=np.arange(CLASSES))
        assert figures["accuracy_top5"].value == pytest.approx(top)


@pytest.mark.parametrize("kind", ["choice", "label"])
def test_a_tie_for_the_first_place_is_a_miss(tmp_path: Path, kind: Kind) -> None:
    answers, probabilities = [0] * CLIPS, np.tile([0.6, 0.4, 0.0], (CLIPS, 1))
    probabilities[::2] = [0.4, 0.4, 0.2]
    assert evaluated(tmp_path, kind, answers, probabilities)["accuracy"].value == 0.5


def test_predictions_of_a_probe_are_those_of_scikit_learn() -> None:
    rng, splits = np.random.default_rng(2), []
    centres = rng.normal(size=(CLASSES, 8))
    for count in (200, 80, 80):
        labels = rng.integers(0, CLASSES, count)
        splits.append(ProbeSplit({"cls": centres[labels] + rng.normal(size=(count, 8))}, labels))
    train, _, test = splits
    found = probe(*splits, CLASSES)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.c, max_iter=1000))
    model.fit(train.features["cls"], train.labels)
    np.testing.assert_allclose(found.probabilities, model.predict_proba(test.features["cls"]), atol=1e-3)
    accuracy = float((found.probabilities.argmax(1) == test.labels).mean())
    assert accuracy == model.score(test.features["cls"], test.labels)
