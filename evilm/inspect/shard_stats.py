"""Collect what shards hold as one Arrow row per clip, to be added up.

Frames are the bulk of a shard and are not read, except for a few row groups whose JPEG sizes stand for all. About a
hundred bytes per clip are held, and the captions' words by frequency.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evilm.io.storage import join
from evilm.shards import FRAMES_SCHEMA, FrameManifest, ShardInfo, read_columns, read_group
from evilm.video.reasons import ClipFlag

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MOST_WORDS = 200_000
_NONE = np.zeros(0, np.int64)
_JPEG_GROUPS = 8
"""Row groups whose frames are read for the sizes of JPEGs."""
_KINDS = ("codec", "decoder", "rotation", "source")
_NUMBERS = ("duration_s", "fps", "width", "height", "source_bytes")
_COLUMNS = [*_NUMBERS, *_KINDS, "captions", "flags", "source_hash", "frame_index", "start_s", "end_s"]

MEASURES = {
    "duration_s": "seconds",
    "fps": "frames per second",
    "width": "width, px",
    "height": "height, px",
    "aspect": "width over height",
    "caption_words": "caption, words",
    "captions": "captions per clip",
    "frames": "frames per clip",
    "source_bytes": "video file, bytes",
    "jpeg_bytes": "JPEG, bytes",
}
"""Names of the distributions, as people read them."""
DUPLICATES = ("video", "clip", "caption")
"""What two clips can have in common: the video file, the span of it, the first caption."""
_FACTS = pa.schema(
    [
        *(FRAMES_SCHEMA.field(name).remove_metadata() for name in (*_NUMBERS, *_KINDS, "flags")),
        *((name, pa.int32()) for name in ("captions", "frames")),
        ("caption_words", pa.list_(pa.int32())),
        *((name, pa.uint64()) for name in DUPLICATES),
    ]
)


@dataclass
class Stats:
    """Facts of all clips of some shards."""

    clips: pa.Table
    """A row per clip, in order: numbers, kinds, digests of what makes duplicates."""
    words: Counter[str]
    jpeg_bytes: np.ndarray
    """Sizes of the JPEGs that were read."""

    @classmethod
    def joined(cls, parts: Sequence["Stats"]) -> "Stats":
        """Return the facts of several, in their order."""
        words = Counter[str]()
        for part in parts:
            words.update(part.words)
            if len(words) > 2 * _MOST_WORDS:  # what is rare by now will hardly be among the most frequent
                words = Counter(dict(words.most_common(_MOST_WORDS)))
        sizes = np.concatenate([_NONE, *(part.jpeg_bytes for part in parts)])
        return cls(pa.concat_tables([_FACTS.empty_table(), *(part.clips for part in parts)]), words, sizes)

    def measure(self, name: str) -> np.ndarray:
        """Return the finite values of one of `MEASURES`."""
        if name == "jpeg_bytes":
            return self.jpeg_bytes
        if name == "aspect":
            return self.measure("width") / np.maximum(self.measure("height"), 1)
        column = self.clips[name]
        flat = pc.call_function("list_flatten", [column]) if name == "caption_words" else column
        values = flat.to_numpy()
        return values[np.isfinite(values)]

    def kinds(self) -> dict[str, dict[str, int]]:
        """Count the clips of each codec, decoder, rotation, manifest, flag and picture size."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in (*_KINDS, "flags", "size")}
        for name in _KINDS:
            counts[name].update({str(kind): n for (kind,), n in self._groups(name) if kind not in (None, "")})
        for (bits,), number in self._groups("flags"):
            counts["flags"].update(dict.fromkeys(ClipFlag.names(bits), number))
        counts["size"].update({f"{width} x {height}": n for (width, height), n in self._groups("width", "height")})
        return {name: dict(found) for name, found in counts.items()}

    def _groups(self, *names: str) -> Iterable[tuple[list[Any], int]]:
        """Return the different values of some columns, and how many clips have each."""
        table = self.clips.group_by(list(names)).aggregate([([], "count_all")])
        return (([row[name] for name in names], row["count_all"]) for row in table.to_pylist())

    def repeated(self, what: str) -> list[np.ndarray]:
        """Return rows that are alike, one of `DUPLICATES`: one array per group, the largest groups first."""
        digests = self.clips[what].to_numpy()
        order = np.argsort(digests, kind="stable")
        _, starts, counts = np.unique(digests[order], return_index=True, return_counts=True)
        several = counts > 1
        bounds = zip(starts[several], counts[several], strict=True)
        groups = [order[start : start + count] for start, count in bounds]
        return sorted(groups, key=lambda rows: (-len(rows), rows[0]))


def summarise(values: np.ndarray) -> dict[str, float]:
    """Return least, 5 %, median, 95 % and greatest; nothing of no values."""
    if not len(values):
        return {}
    found = np.quantile(values, [0, 0.05, 0.5, 0.95, 1], method="inverted_cdf")
    names = ("min", "p5", "median", "p95", "max")
    return dict(zip(names, (float(f"{value:.6g}") for value in found), strict=True))


def histogram(values: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and edges of equal bins, at most `num_bins`, one per value of a few integers.

    A long tail goes into the last bin.
    """
    low, _, median, p95, high = np.quantile(values, [0, 0.05, 0.5, 0.95, 1], method="inverted_cdf")
    end = min(high, max(3 * p95 - 2 * median, p95))
    values = np.minimum(values, end)
    if end == low or (end - low < num_bins and np.all(values == np.round(values))):
        return np.histogram(values, int(end - low) + 1, (low - 0.5, end + 0.5))
    return np.histogram(values, num_bins, (low, max(end, low + 1e-9)))


def jpeg_groups(frames: FrameManifest) -> dict[str, list[int]]:
    """Return row groups, by file, whose frames are read for the sizes of JPEGs: spread evenly over all."""
    groups = [(shard.file, group) for shard in frames.shards for group in range(len(shard.row_groups))]
    chosen: dict[str, list[int]] = {}
    for place in np.unique(np.linspace(0, len(groups) - 1, _JPEG_GROUPS).round().astype(int)) if groups else ():
        chosen.setdefault(groups[place][0], []).append(groups[place][1])
    return chosen


def shard_stats(folder: str, shard: ShardInfo, jpeg_groups: Iterable[int] = ()) -> Stats:
    """Return the facts of one shard.

    Raises:
        ShardError: the file can't be read.
    """
    uri = join(folder, shard.file)
    table = read_columns(uri, _COLUMNS)
    captions = table["captions"].to_pylist()
    words = [[_WORD.findall(caption.lower()) for caption in own] for own in captions]
    videos = table["source_hash"].to_pylist()
    spans = [
        table[name].to_pylist() if name in table.column_names else [None] * len(videos) for name in ("start_s", "end_s")
    ]
    alike = {
        "video": videos,
        "clip": [f"{video} {start} {end}" for video, start, end in zip(videos, *spans, strict=True)],
        "caption": [" ".join(own[0].lower().split()) for own in captions],
    }
    columns = {name: table[name] for name in (*_NUMBERS, *_KINDS, "flags")}
    columns |= {name: pa.array(digest_of(texts)) for name, texts in alike.items()}
    columns["captions"] = pc.call_function("list_value_length", [table["captions"]])
    columns["frames"] = pc.call_function("list_value_length", [table["frame_index"]])
    columns["caption_words"] = pa.array([[len(found) for found in own] for own in words], pa.list_(pa.int32()))
    frames = (pc.call_function("list_flatten", [read_group(uri, n, ["frames"])["frames"]]) for n in jpeg_groups)
    sizes = [pc.call_function("binary_length", [flat]).to_numpy() for flat in frames]
    counts = Counter(word for own in words for found in own for word in found)
    return Stats(
        pa.table({name: columns[name] for name in _FACTS.names}).cast(_FACTS), counts, np.concatenate([_NONE, *sizes])
    )


def digest_of(texts: Iterable[str]) -> np.ndarray:
    """Return a uint64 per text; of ten million texts, two differing ones share one with a chance of 3 in a million."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, "<u8")


def top(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """Return the most frequent, equal ones in order of their names."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
