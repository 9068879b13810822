"""Scores of retrieval: by embeddings, again by the matching head, or by the matching head alone."""

import tempfile
import time
from typing import Any

import numpy as np

from evilm.dataloader.item_loader import ClipFolder, ItemTable
from evilm.eval.fast_retrieval import Embeddings, Ranks, match_scores
from evilm.eval.item_figures import share
from evilm.eval.task_subject import TaskSubject
from evilm.io.outputs import Output
from evilm.model.metrics import Figure, lenient_ranks, median_rank, ranks

_RECALLS = (1, 5, 10)


def score_embeddings(subject: TaskSubject, output: Output) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Rank by dot products; with `rerank_top` again by the matching head; with `pairwise` also all pairs."""
    config, split = subject.config, subject.config.split
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="evilm-") as folder:
        num_items = subject.items.splits[split].num_items
        embeddings = Embeddings.compute(subject.job(split), num_items, config.cluster, folder)
        found = embeddings.rank()
        seconds = {"fast": round(time.monotonic() - began, 2), "products": round(found.seconds, 3)}
        figures = _recall_figures(found)
        if config.rerank_top:
            began = time.monotonic()
            _, _, best = embeddings.best_videos(config.rerank_top)
            figures |= _matched(subject, embeddings.videos, best, "reranked_")
            seconds["reranked"] = round(time.monotonic() - began, 2)
        if config.pairwise:
            began = time.monotonic()
            figures |= _matched(subject, embeddings.videos, None, "pairwise_")
            seconds["pairwise"] = round(time.monotonic() - began, 2)
        output.check()
        embeddings.publish(output.out)
    return figures, {"seconds_by_way": seconds}


def score_pairs(subject: TaskSubject, output: Output) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Rank all pairs by the matching head of a model that was not fine-tuned for retrieval."""
    clips = set(subject.items.read(subject.config.split)["clip_id"].to_pylist())
    return _matched(subject, sorted(clips), None, ""), {}


def _matched(subject: TaskSubject, videos: list[str], best: np.ndarray | None, prefix: str) -> dict[str, Figure]:
    """Rank by the matching head: all videos, or only the best of each caption, which stay ahead of the others."""
    clips = ClipFolder(subject.frames)
    items = ItemTable(subject.items, subject.config.split, clips)
    scores = match_scores(subject.job(subject.config.split), items, clips, videos, subject.config.cluster, best)
    place_of = {clip: place for place, clip in enumerate(videos)}
    own = np.array([place_of[clip] for clip in items.table["clip_id"].to_pylist()])
    clip_ids = items.table["clip_id"].to_pylist()
    to_video = ranks(scores, own, "caption") if best is None else lenient_ranks(scores, own)
    figures = _direction(to_video, clip_ids, len(videos), f"{prefix}t2v")
    if best is None:
        mine = np.where(own[:, None] == np.arange(len(videos))[None], scores, -np.inf)
        to_text = ranks(scores.T, mine.argmax(0), "video")
        figures |= _direction(to_text, videos, len(scores), f"{prefix}v2t")
    return figures


def _recall_figures(found: Ranks) -> dict[str, Figure]:
    """Compute recalls and median ranks of both directions."""
    to_video = _direction(found.to_video, found.clip_ids, len(found.videos), "t2v")
    return to_video | _direction(found.to_text, found.videos, len(found.item_ids), "v2t")


def _direction(places: np.ndarray, clip_ids: list[str], count: int, name: str) -> dict[str, Figure]:
    figures: dict[str, Figure] = {f"{name}_r{k}": share(places <= k, clip_ids, min(1.0, k / count)) for k in _RECALLS}
    return figures | {f"{name}_median_rank": median_rank(places, count)}
