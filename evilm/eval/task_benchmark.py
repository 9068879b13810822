"""Score a model on a downstream task, on videos that it was not trained on. Paper: Sec. 4.2 and 4.4, Tables 1-4."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from evilm.config.stages import Benchmark
from evilm.eval.label_scores import score_labels, score_probe
from evilm.eval.retrieval_scores import score_embeddings, score_pairs
from evilm.eval.score_table import figures_table
from evilm.eval.task_scores import training_of
from evilm.eval.task_subject import PREDICTIONS, TaskSubject, open_subject
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.items.item_tables import ItemsManifest
from evilm.model.task_model import task_fingerprint
from evilm.shards import FrameManifest
from evilm.tasks.task_inputs import find_items, variant

logger = logging.getLogger(__name__)


def benchmark_task(config: Benchmark) -> dict[str, Any]:
    """Score a model on a split of a task's items, or return the finished scores at `out`.

    Returns:
        The summary: `metrics` by name, each with value, chance, standard error and interval; coverage, ceiling, leak.

    Raises:
        ConfigError: the model was trained on videos that it would be scored on, or the split has no items.
        CheckpointError: there is no model, or it scores all items the same.
        ShardError: there are no frames or items.
    """
    root = storage.absolute(config.root)
    frames = FrameManifest.load(config.frames or storage.join(root, "frames"))
    items = find_items(config, frames)
    subject = open_subject(config, frames, items)
    out = storage.absolute(config.out or storage.join(root, f"{variant(config)}-scores"))
    inputs = {"model": task_fingerprint(subject.model), "frames": frames.fingerprint, "items": items.fingerprint}
    form = _form(subject)
    with Output(subject.config, out, inputs, needs=lambda done: _needs(form, done)) as output:
        if output.done:
            logger.info("%s is finished, reused\n%s", out, _describe(items, output.done))
            return output.done | {"reused": True}
        began = time.monotonic()
        figures, facts = _SCORERS[form](subject, output)
        split = items.splits[config.split]
        counts = {"num_items": split.num_items, "num_clips": split.num_clips, "coverage": split.coverage}
        counts |= {"ceiling": subject.ceiling, "num_seen_clips": subject.num_seen}
        counts |= {"num_chosen_clips": subject.num_chosen}
        counts |= {"max_text_len": subject.arch.max_text_len, "num_frames": subject.arch.num_frames}
        counts |= {"cut_texts": round(subject.share_cut(), 6)}
        about = {"out": out, "inputs": inputs, "task": config.task, "model": subject.model, "split": config.split}
        about |= training_of(subject.model) | {
            "zero_shot": subject.zero_shot,
            "leak": None if subject.num_seen is None else subject.num_seen + subject.num_chosen > 0,
            "embedded": subject.embedded,
        }
        metrics = {name: figure.as_dict() for name, figure in figures.items()}
        seconds = round(time.monotonic() - began, 1)
        summary = about | counts | facts | {"metrics": metrics, "reused": False, "seconds": seconds}
        logger.info("%s", _describe(items, summary))
        return output.close(summary)


def _needs(form: str, done: Mapping[str, Any]) -> list[str]:
    """Return the files of a finished benchmark; earlier versions wrote no predictions of scored pairs."""
    return [] if form == "pairs" and "cut_texts" not in done else [PREDICTIONS]


def _form(subject: TaskSubject) -> str:
    """Return how the task is scored."""
    if subject.spec.kind == "label" and not subject.has_head:
        return "probe"
    if subject.spec.kind == "retrieval":
        return "embeddings" if subject.has_head else "pairs"
    return "labels"


def _describe(items: ItemsManifest, summary: Mapping[str, Any]) -> str:
    """Format the scores of a summary with split, coverage, ceiling and what makes them doubtful."""
    split, metrics, ceiling = items.splits[summary["split"]], summary["metrics"], summary["ceiling"]
    how = "zero-shot" if summary["zero_shot"] and items.kind != "label" else ""
    how = "strict linear probe" if "probe" in summary else how
    leak = f"LEAKED: {summary['num_seen_clips']} of the videos were used for training" if summary["leak"] else ""
    if leak and "num_chosen_clips" in summary:  # which an earlier version did not count
        leak += f", {summary['num_chosen_clips']} for validation"
    leak = "it is NOT KNOWN if the model was trained on the videos" if summary["leak"] is None else leak
    title = ", ".join(filter(None, [f"{items.task}, {split.sentence(summary['split'])}", how, leak]))
    intervals = [
        f"{name}: {figure['value']:.1%}, 95 % interval {figure['low']:.1%} to {figure['high']:.1%}, "
        f"{figure['num_clips']} videos"
        for name, figure in metrics.items()
        if "low" in figure and name in ("accuracy", "t2v_r1")
    ]
    pieces = " (answers of one word piece)" if ceiling < split.ceiling else ""
    coverage = f"coverage {split.coverage:.1%}, ceiling {ceiling:.1%}{pieces}"
    if items.kind != "label" and "cut_texts" in summary:  # which an earlier version did not count
        coverage += f", {summary['cut_texts']:.1%} of the texts cut off after {summary['max_text_len']} word pieces"
    return "\n".join([title, figures_table(metrics), *intervals, coverage])


_SCORERS = {
    "labels": score_labels,
    "embeddings": score_embeddings,
    "pairs": score_pairs,
    "probe": score_probe,
}
"""Scoring function by `_form`."""
