"""Find the quarantined clips that a later generation planned again; the later result counts."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from evilm.ingest.clip_table import order_key
from evilm.ingest.shard_plan import Generation, digest_uri
from evilm.io import storage


class RetriedClips:
    """The clips that a later generation planned again; held as eight bytes each."""

    def __init__(self, out: str, generations: Sequence[Generation], seed: int) -> None:
        self._seed = seed
        self._keys: dict[int, np.ndarray] = {}
        for each in generations:
            if each.kind == "retry":
                table = pq.read_table(io.BytesIO(storage.read_bytes(digest_uri(out, each))), columns=["high"])
                self._keys[each.number] = np.sort(table["high"].to_numpy())

    def after(self, generation: int, clip_id: str) -> bool:
        """Return whether a clip of a generation was tried again in a later one, whose result counts."""
        key = np.uint64(int.from_bytes(order_key(self._seed, clip_id)[:8]) if self._keys else 0)
        later = [keys for number, keys in self._keys.items() if number > generation]
        return any(key in keys[(place := int(np.searchsorted(keys, key))) : place + 1] for keys in later)
