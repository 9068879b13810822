"""The folder of a task's items: `items.json` and a Parquet table per split."""

import hashlib
import io
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evilm.config.base import fingerprint
from evilm.errors import ShardError
from evilm.io import storage
from evilm.items.item import Kind

ITEMS_FILE = "items.json"
SPLITS = ("train", "val", "test")
_VERSION = 1


@dataclass(frozen=True)
class ItemsSplit:
    """One split of a task's items."""

    num_items: int
    num_clips: int
    num_missing_items: int
    """Items left out because their video has no frames."""
    num_missing_clips: int
    ceiling: float
    """Share of the items whose answer has a label: no model can score more."""
    sha256: str

    @property
    def coverage(self) -> float:
        """Share of the split's videos that have frames."""
        return self.num_clips / max(1, self.num_clips + self.num_missing_clips)

    def sentence(self, name: str) -> str:
        """Describe the split in a line."""
        text = f"{name}: {self.num_items:,} items on {self.num_clips:,} clips"
        if self.num_missing_clips:
            text += f"; {self.num_missing_clips:,} clips ({self.num_missing_items:,} items) have no frames"
        return text + (f"; {1 - self.ceiling:.2%} of the answers have no label" if self.ceiling < 1 else "")


@dataclass(frozen=True)
class ItemsManifest:
    """All splits of a task."""

    task: str
    kind: Kind
    splits: dict[str, ItemsSplit]
    labels: tuple[str, ...]
    """Answers or classes by label; empty for choices and retrieval."""
    sources: dict[str, str]
    """SHA-256 of each annotation file."""
    uri: str
    embedded: bool = False
    """True if the annotations say that their videos are those of the embedded corpus."""

    @property
    def fingerprint(self) -> str:
        """Return a digest of all items and labels."""
        tables = {name: split.sha256 for name, split in self.splits.items()}
        return fingerprint({"task": self.task, "kind": self.kind, "labels": list(self.labels), "tables": tables})

    def epoch_size(self, split: str) -> int:
        """Return the items of a split; for the train split of retrieval, its clips."""
        found = self.splits.get(split)
        if found is None:
            return 0
        return found.num_clips if self.kind == "retrieval" and split == "train" else found.num_items

    @classmethod
    def load(cls, uri: str) -> "ItemsManifest":
        """Read a folder that `build_items` wrote.

        Raises:
            ShardError: there is none, or an earlier or later version wrote it.
        """
        place = storage.join(storage.absolute(uri), ITEMS_FILE)
        try:
            content = dict(storage.read_json(place))
        except FileNotFoundError:
            raise ShardError(f"{uri} holds no items: there is no {ITEMS_FILE}; run pipelines/build_items.py") from None
        if content.pop("version", 0) != _VERSION:
            raise ShardError(f"{place} is of another version; build the items again")
        splits = {name: ItemsSplit(**content["splits"][name]) for name in SPLITS if name in content["splits"]}
        labels, sources, uri = tuple(content["labels"]), content["sources"], storage.absolute(uri)
        return cls(content["task"], content["kind"], splits, labels, sources, uri, content.get("embedded", False))

    def as_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        content = asdict(self)
        del content["uri"]
        return content | {"version": _VERSION, "fingerprint": self.fingerprint}

    def read(self, split: str) -> pa.Table:
        """Read the items of a split.

        Raises:
            ShardError: there is no such split, or its table is not the one that was written.
        """
        if split not in self.splits:
            raise ShardError(f"{self.uri} has no items of split {split!r}, only {', '.join(self.splits)}")
        data = storage.read_bytes(storage.join(self.uri, f"{split}.parquet"))
        if hashlib.sha256(data).hexdigest() != self.splits[split].sha256:
            raise ShardError(f"{self.uri}/{split}.parquet is damaged or was replaced; build the items again")
        return pq.read_table(io.BytesIO(data))
