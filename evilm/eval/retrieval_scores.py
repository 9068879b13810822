"""Scores of retrieval: by embeddings, again by the matching head, or by the matching head alone."""

import io
import logging
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from evilm.dataloader.item_loader import ClipIndex, ItemTable
from evilm.errors import ConfigError
from evilm.eval.error_gallery import WorstError, draw_gallery
from evilm.eval.fast_retrieval import Embeddings, Ranks, match_best, match_scores
from evilm.eval.item_figures import chance_of_best, share
from evilm.eval.task_subject import PREDICTIONS, TaskSubject
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.model.metrics import Figure, lenient_ranks, median_rank, ranks

logger = logging.getLogger(__name__)

_RECALLS = (1, 5, 10)
_WORST = 48


def score_embeddings(subject: TaskSubject, output: Output) -> tuple[dict[str, Figure], dict[str, Any]]:
    """Rank by dot products; with `rerank_top` again by the matching head; with `pairwise` also all pairs."""
    config, split = subject.config, subject.config.split
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="evilm-") as folder:
        num_items = subject.items.splits[split].num_items
        embeddings = Embeddings.compute(subject.job(split), num_items, config.cluster, folder)
        found, reranked = embeddings.rank(), None
        seconds = {"fast": round(time.monotonic() - began, 2), "products": round(found.seconds, 3)}
        figures = _recall_figures(found)
        if config.rerank_top and subject.no_match:  # no error, since it may come from a preset
            logger.warning("the best videos are not ranked again: %s", subject.no_match)
        elif config.rerank_top:
            began = time.monotonic()
            best = embeddings.best_videos(config.rerank_top)
            reranked = _reranked(subject, embeddings.videos, best, found)
            figures |= _direction(reranked, found.clip_ids, len(found.videos), "reranked_t2v")
            seconds["reranked"] = round(time.monotonic() - began, 2)
        if config.pairwise:
            began = time.monotonic()
            figures |= _recall_figures(_matched(subject, embeddings.videos), "pairwise_")
            seconds["pairwise"] = round(time.monotonic() - began, 2)
        _write_predictions(subject, output, found, reranked)
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
    found = _matched(subject, sorted(clips))
    _write_predictions(subject, output, found)
    return _recall_figures(found), {}


def _matched(subject: TaskSubject, videos: list[str]) -> Ranks:
    """Rank all pairs by the matching head."""
    began, (clips, items, own) = time.monotonic(), _captions(subject, videos)
    scores = match_scores(subject.job(subject.config.split), items, clips, videos, subject.config.cluster)
    to_video, first = ranks(scores, own, "caption"), [videos[place] for place in scores.argmax(1)]
    is_own = own[:, None] == np.arange(len(videos))[None]
    best, others = np.where(is_own, scores, -np.inf).max(0), np.where(is_own, -np.inf, scores)
    to_text = 1 + (others > best).sum(0) + (others == best).sum(0) / 2
    ids: tuple[list[str], list[str]] = (items.table["item_id"].to_pylist(), items.table["clip_id"].to_pylist())
    return Ranks(*ids, to_video, to_text, first, videos, time.monotonic() - began)


def _reranked(
    subject: TaskSubject, videos: list[str], best: Int[np.ndarray, "caption best"], found: Ranks
) -> Float[np.ndarray, " caption"]:
    """Rank the best videos of each caption again by the matching head; the others keep their ranks behind them."""
    clips, items, own = _captions(subject, videos)
    scores = match_best(subject.job(subject.config.split), items, clips, videos, subject.config.cluster, best)
    return rerank(scores, best, own, found.to_video)


def rerank(
    scores: Float[np.ndarray, "caption best"],
    best: Int[np.ndarray, "caption best"],
    own: Int[np.ndarray, " caption"],
    before: Float[np.ndarray, " caption"],
) -> Float[np.ndarray, " caption"]:
    """Return the rank of each caption's own video among its best ones, or the one before where it is not among them.

    Args:
        scores: of each caption with its best videos.
        best: numbers of these videos.
        own: number of each caption's video.
        before: rank of each caption's video among all videos.
    """
    is_own = best == own[:, None]
    columns = is_own.argmax(1)
    is_scored = is_own.any(1) & np.isfinite(scores[np.arange(len(own)), columns])
    return np.where(is_scored, lenient_ranks(scores, columns), before)


def _captions(subject: TaskSubject, videos: list[str]) -> tuple[ClipIndex, ItemTable, Int[np.ndarray, " caption"]]:
    """Return the clips, the captions and the number of each caption's own video."""
    clips = ClipIndex(subject.frames)
    items = ItemTable(subject.items, subject.config.split, clips)
    place_of = {clip: place for place, clip in enumerate(videos)}
    return clips, items, np.array([place_of[clip] for clip in items.table["clip_id"].to_pylist()])


def _write_predictions(
    subject: TaskSubject, output: Output, found: Ranks, reranked: Float[np.ndarray, " caption"] | None = None
) -> None:
    """Write a table with the first video and the rank of the right one for each caption, and pictures of the worst."""
    clips = ClipIndex(subject.frames)
    table = ItemTable(subject.items, subject.config.split, clips).table
    columns = {"item_id": found.item_ids, "clip_id": found.clip_ids, "text": table["text"]}
    columns |= {"predicted": found.best_clip, "rank": found.to_video, "correct": found.to_video == 1}
    columns |= {} if reranked is None else {"reranked_rank": reranked}
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    output.check()
    storage.write_bytes(storage.join(output.out, PREDICTIONS), sink.getvalue())
    order = np.argsort(-found.to_video, kind="stable")[:_WORST]
    errors = [
        WorstError(
            found.item_ids[place], clip := found.clip_ids[place], table["text"][place].as_py(), found.best_clip[place],
            f"{clip}, rank {found.to_video[place]:g}", None,
        )
        for place in order.tolist() if found.to_video[place] > 1
    ]  # fmt: skip
    if errors:
        page, picture = draw_gallery(errors, clips, "captions with the worst rank of their video first")
        storage.write_bytes(storage.join(output.out, "errors.html"), page)
        storage.write_bytes(storage.join(output.out, "errors.png"), picture)


def _recall_figures(found: Ranks, prefix: str = "") -> dict[str, Figure]:
    """Compute recalls and median ranks of both directions."""
    to_video = _direction(found.to_video, found.clip_ids, len(found.videos), f"{prefix}t2v")
    return to_video | _to_text(found.to_text, found.videos, found.clip_ids, f"{prefix}v2t")


def _to_text(places: np.ndarray, videos: list[str], clip_ids: list[str], name: str) -> dict[str, Figure]:
    """Compute the figures of videos that look for captions, of which a video may have several right ones."""
    captions = Counter(clip_ids)
    return _direction(places, videos, len(clip_ids), name, np.array([captions[video] for video in videos]))


def _direction(
    places: np.ndarray, clip_ids: list[str], count: int, name: str, num_right: np.ndarray | None = None
) -> dict[str, Figure]:
    """Compute recalls, and the median rank where each query has one right item, for which its chance is known."""
    right = np.ones(len(places), dtype=np.int64) if num_right is None else num_right
    figures: dict[str, Figure] = {
        f"{name}_r{k}": share(places <= k, clip_ids, chance_of_best(right, count, k)) for k in _RECALLS
    }
    return figures | ({f"{name}_median_rank": median_rank(places, count)} if (right == 1).all() else {})
