"""Scores of tasks with labels: answers, options and classes; fine-tuned, zero-shot or by a linear probe."""

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from evilm.dataloader.item_loader import ClipIndex, ItemTable
from evilm.errors import CheckpointError, ConfigError
from evilm.eval.error_gallery import WorstError, draw_gallery
from evilm.eval.item_figures import by_type, share
from evilm.eval.item_scoring import FEATURES, TOP, score_items
from evilm.eval.linear_probe import ProbeSplit, probe
from evilm.eval.task_subject import PREDICTIONS, TaskSubject
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.model.metrics import Figure

_WORST = 48


@dataclass(frozen=True)
class BestLabels:
    """The likeliest labels or options of each item, in the order of the items."""

    item_ids: list[str]
    labels: Int[np.ndarray, "item best"]
    probabilities: Float[np.ndarray, "item best"]


def score_labels(subject: TaskSubject, output: Output) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Score answers, classes or options of all items."""
    split = subject.config.split
    batches = list(score_items(subject.job(split), subject.items.splits[split].num_items, subject.config.cluster))
    item_ids = [item for batch in batches for item in batch["item_id"].tolist()]
    probabilities = np.concatenate([batch["probabilities"] for batch in batches])
    if subject.spec.kind == "choice":
        best = _sorted(item_ids, probabilities)
    else:
        best = BestLabels(item_ids, np.concatenate([batch["top"] for batch in batches]), probabilities)
    return _evaluate(subject, output, best)


def _sorted(item_ids: list[str], probabilities: Float[np.ndarray, "item label"]) -> BestLabels:
    """Sort the labels of each item by probability."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    return BestLabels(item_ids, order, np.take_along_axis(probabilities, order, axis=1))


def _evaluate(subject: TaskSubject, output: Output, best: BestLabels) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Join the best labels with the items, publish predictions and worst errors, and compute the figures."""
    if not np.isfinite(best.probabilities).all():
        raise CheckpointError(
            f"{subject.model} gives probabilities that are not finite; it is damaged or its training diverged"
        )
    clips = ClipIndex(subject.frames)
    table = ItemTable(subject.items, subject.config.split, clips).table
    assert table["item_id"].to_pylist() == best.item_ids, "scores come in the order of the items"
    is_tie = best.probabilities[:, 0] <= best.probabilities[:, 1:2].max(1, initial=0)
    hits = (best.labels[:, 0] == table["label"].to_numpy()) & ~is_tie
    names = [subject.spec.labels or options for options in table["options"].to_pylist()]
    predicted = [own[place] for own, place in zip(names, best.labels[:, 0], strict=True)]
    columns = {name: table[name] for name in ("item_id", "clip_id", "text", "answer", "type")}
    found = pa.table(columns | {"predicted": predicted, "probability": best.probabilities[:, 0], "correct": hits})
    sink = io.BytesIO()
    pq.write_table(found, sink, compression="zstd")
    output.check()
    storage.write_bytes(storage.join(output.out, PREDICTIONS), sink.getvalue())
    _write_gallery(output, clips, found)
    return label_figures(subject, table, hits, best.labels), {"num_labels": len(subject.spec.labels)}


def label_figures(
    subject: TaskSubject, table: pa.Table, hits: Bool[np.ndarray, " item"], best: Int[np.ndarray, "item best"]
) -> dict[str, Figure]:
    """Compute accuracy over all items, over those that the head can answer, among the top five classes, and by type."""
    labels, clip_ids = table["label"].to_numpy(), table["clip_id"].to_pylist()
    train = subject.items.read("train") if "train" in subject.items.splits else None
    is_guessed = labels == (guess_options(table, train) if subject.spec.kind == "choice" else _guess(labels, train))
    least = 1 / len(table["options"][0]) if subject.spec.kind == "choice" else 0.0

    def chance(rows: Bool[np.ndarray, " item"]) -> float:
        return max(least, float(np.mean(is_guessed[rows])))

    figures: dict[str, Figure] = {"accuracy": share(hits, clip_ids, chance(np.ones(len(labels), dtype=bool)))}
    known = subject.can_answer(labels)
    if known.any() and not known.all():
        clip_of_known = [clip for clip, is_known in zip(clip_ids, known, strict=True) if is_known]
        figures["accuracy_labelled"] = share(hits[known], clip_of_known, chance(known))
    if subject.spec.kind == "label" and best.shape[1] > 1:
        inside = (best == labels[:, None]).any(1)
        figures["accuracy_top5"] = share(inside, clip_ids, min(1.0, best.shape[1] / len(subject.spec.labels)))
    types = table["type"].to_pylist()
    if len(set(types)) > 1:
        rows = np.asarray(types)
        typed = by_type(hits, types, clip_ids, lambda name: chance(rows == name))
        figures |= {f"accuracy/{name}": figure for name, figure in typed.items()}
    return figures


def _guess(labels: Int[np.ndarray, " item"], train: pa.Table | None) -> int:
    """Return the most frequent label of train, or of the scored items without a train split."""
    found = labels if train is None else train["label"].to_numpy()
    known = found[found >= 0]
    return int(np.bincount(known).argmax()) if len(known) else 0


def guess_options(table: pa.Table, train: pa.Table | None) -> Int[np.ndarray, " item"]:
    """Return for each choice the option that is most often the answer in train; -1 without a train split."""
    if train is None:
        return np.full(len(table), -1)
    counts = Counter(train["answer"].to_pylist())
    best = [max(range(len(options)), key=lambda k: counts[options[k]]) for options in table["options"].to_pylist()]
    return np.array(best)


def _write_gallery(output: Output, clips: ClipIndex, found: pa.Table) -> None:
    """Draw the wrong predictions with the highest probability."""
    wrong = (
        found.filter(pa.array(~found["correct"].to_numpy())).sort_by([("probability", "descending")]).slice(0, _WORST)
    )
    columns = ("item_id", "clip_id", "text", "predicted", "answer", "probability")
    errors = [WorstError(*row) for row in zip(*(wrong[name].to_pylist() for name in columns), strict=True)]
    if errors:
        page, picture = draw_gallery(errors, clips)
        storage.write_bytes(storage.join(output.out, "errors.html"), page)
        storage.write_bytes(storage.join(output.out, "errors.png"), picture)


def score_probe(subject: TaskSubject, output: Output) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Fit a linear probe on train, choose it on val, and score it."""
    if subject.config.split in ("train", "val"):
        raise ConfigError(
            f"--split {subject.config.split}: a linear probe is fitted on train and chosen on val; use test"
        )
    splits = {}
    clips = ClipIndex(subject.frames)
    for split in ("train", "val", subject.config.split):
        if not subject.items.epoch_size(split):
            raise ConfigError(f"{subject.items.uri} has no items of split {split}, which a linear probe needs")
        num_items = subject.items.splits[split].num_items
        batches = list(score_items(subject.job(split, probe=True), num_items, subject.config.cluster))
        features = {name: np.concatenate([batch[name] for batch in batches]) for name in FEATURES}
        labels = ItemTable(subject.items, split, clips).table["label"].to_numpy()
        splits[split] = ProbeSplit(features, labels)
    result = probe(splits["train"], splits["val"], splits[subject.config.split], len(subject.spec.labels))
    item_ids = ItemTable(subject.items, subject.config.split, clips).table["item_id"].to_pylist()
    figures, facts = _evaluate(subject, output, _sorted(item_ids, result.probabilities))
    chosen = {"feature": result.feature, "c": result.c, "val_accuracy": round(result.val_accuracy, 6)}
    return figures, facts | {"probe": chosen}
