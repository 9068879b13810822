"""Items about the clips of small frame shards, as build_items leaves them."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from evilm.io import storage
from evilm.items.item import Item, Kind, to_table
from evilm.items.item_tables import ITEMS_FILE, ItemsManifest, ItemsSplit


def write_items(
    uri: Path, kind: Kind, items: Sequence[Item], labels: Sequence[str] = (), task: str = "t"
) -> ItemsManifest:
    """Write a folder of items."""
    index, splits = {answer: place for place, answer in enumerate(labels)}, {}
    for split in dict.fromkeys(item.split for item in items):
        own = [item for item in items if item.split == split]
        sink = io.BytesIO()
        pq.write_table(to_table(own, index), sink)
        storage.write_bytes(str(uri / f"{split}.parquet"), sink.getvalue())
        known = sum(item.answer in index for item in own) if labels else len(own)
        digest = hashlib.sha256(sink.getvalue()).hexdigest()
        splits[split] = ItemsSplit(len(own), len({item.clip_id for item in own}), 0, 0, known / len(own), digest)
    manifest = ItemsManifest(task, kind, splits, tuple(labels), {}, str(uri))
    storage.write_json(str(uri / ITEMS_FILE), manifest.as_json())
    return ItemsManifest.load(str(uri))


def questions(num_clips: int, each: int = 3, split: str = "train") -> list[Item]:
    """Make `each` questions on each clip, in an order that is not that of the clips."""
    pairs = sorted(((clip, k) for clip in range(num_clips) for k in range(each)), key=lambda pair: (pair[1], -pair[0]))
    return [Item(split, f"q{clip}-{k}", f"c{clip:03d}", f"what is {k}?", ("red", "blue")[(clip + k) % 2], type=f"t{k}")
            for clip, k in pairs]  # fmt: skip
