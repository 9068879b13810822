"""Retrieval by dot products of embeddings, in bounded memory, with exact re-ranking of the best by the matching head.

Embeddings of captions go to a Parquet file and are compared with all videos a few thousand at a time.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from evilm.config.resources import ScorerConfig
from evilm.config.training import ObjectivesConfig
from evilm.dataloader.item_loader import ClipIndex, ItemTable
from evilm.eval.eval_clips import EvalClip, make_blocks
from evilm.eval.item_scoring import ItemJob, score_items
from evilm.eval.scoring import ScoreJob, score_clips, score_some
from evilm.io import storage
from evilm.model.metrics import ranks

VIDEOS, TEXTS = "video_embeddings.parquet", "caption_embeddings.parquet"
_BATCH, _BLOCK_CLIPS = 2048, 8


@dataclass(frozen=True)
class Ranks:
    """Rank of the right video of each caption, and of the best right caption of each video; 1 = first."""

    item_ids: list[str]
    clip_ids: list[str]
    """Video of each caption."""
    to_video: Float[np.ndarray, " caption"]
    to_text: Float[np.ndarray, " video"]
    best_clip: list[str]
    """First video of each caption."""
    videos: list[str]
    seconds: float


class Embeddings:
    """Embeddings of the captions and videos of a split, in Parquet files."""

    def __init__(self, folder: str, videos: list[str], matrix: Float[np.ndarray, "video embed"]) -> None:
        self._folder, self.videos, self._matrix = folder, videos, matrix
        self._place_of = {clip: place for place, clip in enumerate(videos)}

    @classmethod
    def compute(cls, job: ItemJob, num_items: int, cluster: ScorerConfig, folder: str) -> "Embeddings":
        """Embed all captions and videos, and write them to a local folder."""
        videos, vectors = list[str](), list[np.ndarray]()
        known = set[str]()
        writer: Any = None
        for batch in score_items(job, num_items, cluster):
            for clip, vector in zip(batch["clip_id"].tolist(), batch["video"], strict=True):
                if clip not in known:
                    known.add(clip)
                    videos.append(clip)
                    vectors.append(vector)
            writer = _write(writer, Path(folder, TEXTS), batch["item_id"], batch["clip_id"], batch["text"])
        writer.close()
        matrix = np.stack(vectors)
        _write(None, Path(folder, VIDEOS), np.array(videos), np.array(videos), matrix).close()
        return cls(folder, videos, matrix)

    def publish(self, out: str) -> None:
        """Move the files to the output; the embeddings can't be used any more."""
        for name in (VIDEOS, TEXTS):
            storage.put_file(str(Path(self._folder, name)), storage.join(out, name))

    def rank(self) -> Ranks:
        """Compare all captions with all videos."""
        began = time.monotonic()
        best = np.full(len(self.videos), -np.inf, dtype=np.float32)
        item_ids, clip_ids, to_video, first = list[str](), list[str](), list[np.ndarray](), list[str]()
        for items, clips, scores in self._scores():
            own = self._places(clips)
            np.maximum.at(best, own, scores[np.arange(len(own)), own])
            to_video.append(ranks(scores, own, "caption"))
            first += [self.videos[place] for place in scores.argmax(1)]
            item_ids += items
            clip_ids += clips
        above = np.zeros(len(self.videos))
        for _, clips, scores in self._scores():
            scores[np.arange(len(scores)), self._places(clips)] = -np.inf  # a video's other captions are right too
            above += (scores > best).sum(0) + (scores == best).sum(0) / 2
        to_text = 1 + above
        seconds = time.monotonic() - began
        return Ranks(item_ids, clip_ids, np.concatenate(to_video), to_text, first, self.videos, seconds)

    def best_videos(self, count: int) -> Int[np.ndarray, "caption best"]:
        """Return the best videos of each caption, by number."""
        order = (np.argsort(-scores, axis=1, kind="stable") for _, _, scores in self._scores())
        return np.concatenate([places[:, :count].astype(np.int32) for places in order])

    def _scores(self) -> Iterator[tuple[list[str], list[str], Float[np.ndarray, "caption video"]]]:
        """Yield ids and clips of some captions with their scores of all videos."""
        file = pq.ParquetFile(Path(self._folder, TEXTS))
        for batch in file.iter_batches(_BATCH):
            vectors = batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)
            yield batch["item_id"].to_pylist(), batch["clip_id"].to_pylist(), vectors @ self._matrix.T

    def _places(self, clips: list[str]) -> Int[np.ndarray, " caption"]:
        return np.array([self._place_of[clip] for clip in clips], dtype=np.int64)


def _write(writer: Any, path: Path, item_ids: np.ndarray, clip_ids: np.ndarray, vectors: np.ndarray) -> Any:
    """Append rows to a Parquet file, which the first call opens."""
    schema = pa.schema(
        [("item_id", pa.string()), ("clip_id", pa.string()), ("embedding", pa.list_(pa.float32(), vectors.shape[1]))]
    )
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns = [pa.array(item_ids), pa.array(clip_ids), pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
    writer = writer or pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)
    writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return writer


def match_scores(
    job: ItemJob, items: ItemTable, clips: ClipIndex, videos: list[str], cluster: ScorerConfig
) -> Float[np.ndarray, "caption video"]:
    """Score all pairs of captions and videos by the matching head.

    Rows are in the order of `items`, columns in that of `videos`.
    """
    score_job, order = _score_job(job, items, clips, videos)
    scores = np.empty((len(score_job.captions), len(videos)), dtype=np.float32)
    scores[:, order] = score_clips(score_job, cluster).match.T
    return scores


def match_best(
    job: ItemJob, items: ItemTable, clips: ClipIndex, videos: list[str], cluster: ScorerConfig,
    best: Int[np.ndarray, "caption best"],
) -> Float[np.ndarray, "caption best"]:  # fmt: skip
    """Score likewise each caption only with the videos that `best` numbers; memory does not grow with all pairs."""
    score_job, order = _score_job(job, items, clips, videos)
    places = np.empty(len(order), dtype=np.int32)
    places[order] = np.arange(len(order))
    return score_some(replace(score_job, only=places[best]), cluster)


def _score_job(job: ItemJob, items: ItemTable, clips: ClipIndex, videos: list[str]) -> tuple[ScoreJob, list[int]]:
    """Return the work of scoring actors, which take the videos in the order that they are stored in, and that order."""
    captions: list[str] = items.table["text"].to_pylist()
    order = sorted(range(len(videos)), key=lambda place: clips.place_of[videos[place]])
    eval_clips = [EvalClip(videos[place], "", None, *clips.place_of[videos[place]]) for place in order]
    blocks = make_blocks(clips.pairs, eval_clips, _BLOCK_CLIPS)
    settings = (ObjectivesConfig(), 0, job.threads, job.use_gpu)
    return ScoreJob(job.model, blocks, captions, [0] * len(order), *settings, arch=job.arch), order
