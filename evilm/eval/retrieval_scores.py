"""Scores of retrieval: by embeddings, again by the matching head, or by the matching head alone."""

import io
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evilm.dataloader.item_loader import ClipIndex, ItemTable
from evilm.errors import ConfigError
from evilm.eval.fast_retrieval import Embeddings, Ranks, match_scores
from evilm.eval.item_figures import chance_of_best, share
from evilm.eval.task_subject import PREDICTIONS, TaskSubject
from evilm.io import storage
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
            figures |= _reranked(subject, embeddings.videos, best, found)
            seconds["reranked"] = round(time.monotonic() - began, 2)
        if config.pairwise:
            began = time.monotonic()
            figures |= _matched(subject, embeddings.videos, "pairwise_")
            seconds["pairwise"] = round(time.monotonic() - began, 2)
        output.check()
        storage.write_bytes(storage.join(output.out, PREDICTIONS), _predictions(subject, found))
        embeddings.publish(output.out)
    return figures, {"seconds_by_way": seconds}


def score_pairs(subject: TaskSubject, output: Output) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Rank all pairs by the matching head of a model that was not fine-tuned for retrieval.

    Raises:
        ConfigError: scores are to be averaged over views.
    """
    if subject.config.views > 1:
        raise ConfigError("--views has no effect on zero-shot retrieval, which scores every pair; use --views 1")
    clips = set(subject.items.read(subject.config.split)["clip_id"].to_pylist())
    return _matched(subject, sorted(clips), ""), {}


def _matched(subject: TaskSubject, videos: list[str], prefix: str) -> dict[str, Figure]:
    """Rank all pairs by the matching head."""
    scores, own, clip_ids = _match(subject, videos)
    to_video = _direction(ranks(scores, own, "caption"), clip_ids, len(videos), f"{prefix}t2v")
    is_own = own[:, None] == np.arange(len(videos))[None]
    best, others = np.where(is_own, scores, -np.inf).max(0), np.where(is_own, -np.inf, scores)
    to_text = 1 + (others > best).sum(0) + (others == best).sum(0) / 2
    return to_video | {f"{prefix}{name}": figure for name, figure in _to_text(to_text, videos, clip_ids).items()}


def _reranked(subject: TaskSubject, videos: list[str], best: np.ndarray, found: Ranks) -> dict[str, Figure]:
    """Rank the best videos of each caption again by the matching head; the others keep their ranks behind them."""
    scores, own, clip_ids = _match(subject, videos, best)
    is_scored = np.isfinite(scores[np.arange(len(own)), own])
    places = np.where(is_scored, lenient_ranks(scores, own), found.to_video)
    return _direction(places, clip_ids, len(videos), "reranked_t2v")


def _match(
    subject: TaskSubject, videos: list[str], only: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Score captions with videos by the matching head; also return number and id of each caption's own video."""
    clips = ClipIndex(subject.frames)
    items = ItemTable(subject.items, subject.config.split, clips)
    scores = match_scores(subject.job(subject.config.split), items, clips, videos, subject.config.cluster, only)
    place_of = {clip: place for place, clip in enumerate(videos)}
    clip_ids: list[str] = items.table["clip_id"].to_pylist()
    return scores, np.array([place_of[clip] for clip in clip_ids]), clip_ids


def _predictions(subject: TaskSubject, found: Ranks) -> bytes:
    """Return a Parquet table with the first video and the rank of the right one for each caption."""
    table = ItemTable(subject.items, subject.config.split, ClipIndex(subject.frames)).table
    columns = {"item_id": found.item_ids, "clip_id": found.clip_ids, "text": table["text"]}
    columns |= {"predicted": found.best_clip, "rank": found.to_video, "correct": found.to_video == 1}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def _recall_figures(found: Ranks) -> dict[str, Figure]:
    """Compute recalls and median ranks of both directions."""
    to_video = _direction(found.to_video, found.clip_ids, len(found.videos), "t2v")
    return to_video | _to_text(found.to_text, found.videos, found.clip_ids)


def _to_text(places: np.ndarray, videos: list[str], clip_ids: list[str]) -> dict[str, Figure]:
    """Compute the figures of videos that look for captions, of which a video may have several right ones."""
    captions = Counter(clip_ids)
    return _direction(places, videos, len(clip_ids), "v2t", np.array([captions[video] for video in videos]))


def _direction(
    places: np.ndarray, clip_ids: list[str], count: int, name: str, num_right: np.ndarray | None = None
) -> dict[str, Figure]:
    """Compute recalls, and the median rank where each query has one right item, for which its chance is known."""
    right = np.ones(len(places), dtype=np.int64) if num_right is None else num_right
    figures: dict[str, Figure] = {
        f"{name}_r{k}": share(places <= k, clip_ids, chance_of_best(right, count, k)) for k in _RECALLS
    }
    return figures | ({f"{name}_median_rank": median_rank(places, count)} if (right == 1).all() else {})
