"""Count what shards hold, in statistics that can be added up: each shard is read once, row group by row group.

Frames are the bulk of a shard and are not read, but for a few row groups whose JPEG sizes stand for all. Values are
counted by their first four digits, so what is held grows with the number of distinct values, not of clips; only eight
bytes per clip and kind of duplicate do.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evilm.io.storage import join, with_retries
from evilm.shards import FrameManifest, ShardInfo, open_shard, stored_columns, with_captions
from evilm.video.reasons import ClipFlag

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_MOST_WORDS = 200_000
_JPEG_GROUPS = 8
"""Row groups whose frames are read for the sizes of JPEGs."""
_COLUMNS = [
    *("clip_id", "captions", "duration_s", "fps", "width", "height", "rotation", "codec", "decoder", "flags"),
    *("source_bytes", "source", "source_hash", "frame_index", "start_s", "end_s"),
]

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


@dataclass
class Distribution:
    """Numbers, counted by their first four digits; least and greatest are exact."""

    counts: Counter[float] = field(default_factory=Counter)
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, values: np.ndarray) -> None:
        """Count numbers; those that are not finite are left out."""
        values = np.asarray(values, np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            return
        with np.errstate(divide="ignore"):
            digits = 3 - np.floor(np.log10(np.abs(values)))
        scale = 10.0 ** np.where(np.isfinite(digits), digits, 0.0)
        rounded = np.round(values * scale) / scale
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.counts.update(dict(zip(*(part.tolist() for part in np.unique(rounded, return_counts=True)), strict=True)))

    def merge(self, other: "Distribution") -> None:
        """Add the counts of another."""
        self.counts.update(other.counts)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Values, ascending, and how often each was met."""
        values = sorted(self.counts)
        return np.array(values), np.array([self.counts[value] for value in values])

    def summary(self) -> dict[str, float]:
        """Least, 5 %, median, 95 % and greatest; empty where nothing was counted."""
        if not self.counts:
            return {}
        values, counts = self.sorted()
        places = np.searchsorted(np.cumsum(counts) / counts.sum(), [0.05, 0.5, 0.95], side="left")
        p5, median, p95 = values[np.minimum(places, len(values) - 1)]
        figures = {"min": self.low, "p5": p5, "median": median, "p95": p95, "max": self.high}
        return {name: float(f"{value:.6g}") for name, value in figures.items()}

    def histogram(self, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts and edges of equal bins from least to greatest, at most `num_bins`, one per value of a few integers.

        A long tail goes into the last bin.
        """
        values, counts = self.sorted()
        summary = self.summary()
        top = min(summary["max"], max(3 * summary["p95"] - 2 * summary["median"], summary["p95"]))
        values, low = np.minimum(values, top), float(values[0])
        if top - low < num_bins and np.all(values == np.round(values)):
            return np.histogram(values, int(top - low) + 1, (low - 0.5, top + 0.5), weights=counts)
        return np.histogram(values, num_bins, (low, max(top, low + 1e-9)), weights=counts)


@dataclass
class Stats:
    """Counts over some shards."""

    measures: dict[str, Distribution] = field(default_factory=lambda: {name: Distribution() for name in MEASURES})
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    """Codecs, decoders, rotations, flags, picture sizes: how many clips of each."""
    words: Counter[str] = field(default_factory=Counter)
    digests: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """uint64 by kind of duplicate (video, clip, caption), one array per shard in the order of the manifest."""

    def merge(self, other: "Stats") -> None:
        """Add the counts of the shards that come next."""
        for name, distribution in other.measures.items():
            self.measures[name].merge(distribution)
        for name, counts in other.kinds.items():
            self.kinds.setdefault(name, Counter()).update(counts)
        self.words.update(other.words)
        if len(self.words) > 2 * _MOST_WORDS:  # what is rare by now will hardly be among the most frequent
            self.words = Counter(dict(self.words.most_common(_MOST_WORDS)))
        for name, digests in other.digests.items():
            self.digests.setdefault(name, []).extend(digests)

    def repeated(self, what: str) -> list[np.ndarray]:
        """Rows, numbered through all shards, that share a digest: one array per group, the largest groups first."""
        digests = np.concatenate(self.digests.get(what) or [np.zeros(0, np.uint64)])
        order = np.argsort(digests, kind="stable")
        _, starts, counts = np.unique(digests[order], return_index=True, return_counts=True)
        several = counts > 1
        bounds = zip(starts[several], counts[several], strict=True)
        groups = [order[start : start + count] for start, count in bounds]
        return sorted(groups, key=lambda rows: (-len(rows), rows[0]))


def jpeg_groups(frames: FrameManifest) -> dict[str, list[int]]:
    """Row groups, by file, whose frames are read for the sizes of JPEGs: spread evenly over all."""
    groups = [(shard.file, group) for shard in frames.shards for group in range(len(shard.row_groups))]
    chosen: dict[str, list[int]] = {}
    for place in np.unique(np.linspace(0, len(groups) - 1, _JPEG_GROUPS).round().astype(int)) if groups else ():
        chosen.setdefault(groups[place][0], []).append(groups[place][1])
    return chosen


def shard_stats(folder: str, shard: ShardInfo, jpeg_groups: Iterable[int] = ()) -> Stats:
    """Counts of one shard.

    Args:
        folder: where the shards lie.
        shard: the one to read.
        jpeg_groups: its row groups whose frames are read too.

    Raises:
        StorageError, ArrowException: the file can't be read.
    """
    wanted = set(jpeg_groups)

    def read() -> Stats:
        stats = Stats()
        with open_shard(join(folder, shard.file)) as file:
            there = set(file.schema_arrow.names)
            for group in range(file.num_row_groups):
                columns = [name for name in stored_columns(file, _COLUMNS) if name in there]
                columns += ["frames"] * (group in wanted)
                stats.merge(_group_stats(with_captions(file.read_row_group(group, columns=columns))))
        stats.digests = {name: [np.concatenate(parts)] for name, parts in stats.digests.items()}
        return stats

    return with_retries(join(folder, shard.file), read)


def _group_stats(table: pa.Table) -> Stats:
    """Counts of one row group."""
    stats = Stats()
    lists = table["captions"].to_pylist()
    captions = [caption for own in lists for caption in own]
    words = [_WORD.findall(caption.lower()) for caption in captions]
    numbers = {name: table[name].to_numpy() for name in ("duration_s", "fps", "width", "height", "source_bytes")}
    numbers["aspect"] = numbers["width"] / np.maximum(numbers["height"], 1)
    numbers["frames"] = pc.call_function("list_value_length", [table["frame_index"]]).to_numpy()
    numbers["caption_words"] = np.array([len(found) for found in words])
    numbers["captions"] = pc.call_function("list_value_length", [table["captions"]]).to_numpy()
    if "frames" in table.column_names:
        flat = pc.call_function("list_flatten", [table["frames"]])
        numbers["jpeg_bytes"] = pc.call_function("binary_length", [flat]).to_numpy()
    for name, values in numbers.items():
        stats.measures[name].add(values)
    stats.words.update(word for found in words for word in found)
    kinds = ("codec", "decoder", "rotation", "source")
    stats.kinds = {name: Counter(map(str, filter(_is_named, table[name].to_pylist()))) for name in kinds}
    stats.kinds["flags"] = Counter(flag for bits in table["flags"].to_pylist() for flag in ClipFlag.names(bits))
    sizes = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    stats.kinds["size"] = Counter(f"{width} x {height}" for width, height in sizes)
    stats.digests = _digests(table, [own[0] for own in lists])
    return stats


def _is_named(value: object) -> bool:
    return value not in (None, "")


def _digests(table: pa.Table, captions: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """Return what makes duplicates: the video file, the clip of it, the first caption."""
    videos = table["source_hash"].to_pylist()
    spans = [
        table[name].to_pylist() if name in table.column_names else [None] * len(videos) for name in ("start_s", "end_s")
    ]
    clips = [f"{video} {start} {end}" for video, start, end in zip(videos, *spans, strict=True)]
    texts = {"video": videos, "clip": clips, "caption": [" ".join(caption.lower().split()) for caption in captions]}
    return {name: [digest_of(values)] for name, values in texts.items()}


def digest_of(texts: Iterable[str]) -> np.ndarray:
    """uint64 per text; of ten million texts, two differing ones share a digest with a chance of 3 in a million."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(joined, "<u8")


def top(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """The most frequent, equal ones in order of their names."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
