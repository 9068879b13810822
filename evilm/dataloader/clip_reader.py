"""The clips of a row group, and what an epoch shows of them: which stored frames, which view, and their codes.

What it shows is drawn from (seed, epoch, clip id) only, so workers, restarts and batches do not change it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8, UInt16

from evilm.config.training import CropConfig
from evilm.dataloader.sampler import EVAL_EPOCH
from evilm.errors import ShardError
from evilm.seeds import clip_rng
from evilm.shards import Footers, ShardPair, decode_frames, jpeg_side, read_group
from evilm.video.crops import View, draw_view, nearest_cells, pick_frames, replay


class Clips:
    """Rows of a frame shard, with their codes where they are given; JPEGs and codes stay where Arrow read them to."""

    def __init__(self, table: pa.Table, codes: pa.Table | None = None) -> None:
        self._table, self._codes = table, codes
        self.clip_ids: list[str] = table["clip_id"].to_pylist()

    @cached_property
    def captions(self) -> list[list[str]]:
        """Return all captions of each clip."""
        return self._table["captions"].to_pylist()

    @property
    def has_codes(self) -> bool:
        """Return whether codes were read beside the frames."""
        return self._codes is not None

    def num_frames(self, row: int) -> int:
        """Return the number of stored frames of a clip."""
        starts, _, _ = self._jpegs
        return int(starts[row + 1] - starts[row])

    @cached_property
    def frame_px(self) -> int:
        """Return the side of the stored frames."""
        return jpeg_side(self.jpegs(0, [0])[0])

    def jpegs(self, row: int, picked: Sequence[int] | np.ndarray) -> list[memoryview]:
        """Return the JPEG bytes of some frames of a clip."""
        starts, offsets, data = self._jpegs
        places = [int(starts[row]) + int(frame) for frame in picked]
        return [data[offsets[place] : offsets[place + 1]] for place in places]

    def decode(self, row: int, picked: Sequence[int] | np.ndarray, out: UInt8[np.ndarray, "frame row col 3"]) -> None:
        """Write the pixels of some frames of a clip to `out`."""
        decode_frames(self.jpegs(row, picked), out)

    def codes(self, row: int, view: int, num_views: int) -> UInt16[np.ndarray, "frame region"]:
        """Return the codes of all stored frames of a clip in one view."""
        return self._code_ids[row].reshape(num_views, self.num_frames(row), -1)[view]

    def view(self, row: int, view: int) -> View:
        """Return the numbers of a stored view."""
        starts, columns = self._views
        place = int(starts[row]) + view
        x, y, width, height, flip = (column[place] for column in columns)
        return View(int(x), int(y), int(width), int(height), bool(flip))

    @cached_property
    def _jpegs(self) -> tuple[np.ndarray, list[int], memoryview]:
        """Return the first JPEG of each clip, the first byte of each JPEG, and all bytes."""
        frames = _only_chunk(self._table["frames"])
        values = frames.values
        _, offsets, data = values.buffers()
        first = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
        return frames.offsets.to_numpy(), first.tolist(), memoryview(data).cast("B")

    @cached_property
    def _code_ids(self) -> UInt16[np.ndarray, "clip code"]:
        assert self._codes is not None
        column = _only_chunk(self._codes["code_ids"])
        return column.flatten().to_numpy().reshape(len(column), -1)

    @cached_property
    def _views(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the first view of each clip, and the numbers of all views."""
        assert self._codes is not None
        views = _only_chunk(self._codes["views"])
        fields = [views.values.field(name).to_numpy(zero_copy_only=False) for name in View._fields]
        return views.offsets.to_numpy(), fields


def _only_chunk(column: pa.ChunkedArray) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


@dataclass(frozen=True)
class ClipAugmentation:
    """The part of a clip that an epoch shows. The default: every stored frame, whole."""

    seed: int = 0
    num_frames: int = 0
    """Frames shown, one drawn from each of as many equal groups of the stored ones; 0 shows all."""
    num_views: int = 1
    """Views that were coded; an epoch shows one of them."""
    crop: CropConfig | None = None
    """Crops drawn anew in each epoch, with approximate codes."""

    def show(
        self, clips: Clips, row: int, epoch: int, out: UInt8[np.ndarray, "frame row col 3"]
    ) -> Int[np.ndarray, "frame region"] | None:
        """Write the frames of a clip as this epoch shows them to `out`; their codes, where there are codes.

        An evaluation shows whole frames, from the middle of each group.
        """
        clip_id, drawn = clips.clip_ids[row], epoch != EVAL_EPOCH
        picked = self.pick(clips.num_frames(row), clip_id, epoch)
        clips.decode(row, picked, out)
        which = 0
        if drawn and self.num_views > 1 and self.crop is None:
            which = int(clip_rng("view", self.seed, epoch, clip_id).integers(self.num_views))
        codes = clips.codes(row, which, self.num_views)[picked] if clips.has_codes else None
        if which:
            replay(out, clips.view(row, which), out)
        if not drawn or self.crop is None:
            return codes
        rng = clip_rng(f"crop {self.crop.seed}", self.seed, epoch, clip_id)
        view = draw_view(clips.frame_px, self.crop, "\n".join(clips.captions[row]), rng)
        replay(out, view, out)
        return None if codes is None else codes[:, nearest_cells(view, clips.frame_px, round(codes.shape[1] ** 0.5))]

    def pick(self, num_stored: int, clip_id: str, epoch: int) -> np.ndarray:
        """Return which stored frames of a clip an epoch shows."""
        wanted = self.num_frames or num_stored
        drawn = epoch != EVAL_EPOCH and wanted < num_stored
        return pick_frames(num_stored, wanted, clip_rng("frames", self.seed, epoch, clip_id) if drawn else None)


@dataclass(frozen=True)
class Rows:
    """The rows of one global step that a worker gets, before collation.

    `clip_ids` and `captions`, one drawn for each clip, are those of all clips of the global step; `mine` says which of
    them are this worker's, and `frames` (uint8, clip x frame x row x col x 3) and `code_ids` (int64, clip x region)
    belong to those.
    """

    epoch: int
    clip_ids: list[str]
    captions: list[str]
    all_captions: list[list[str]]
    """Of each clip: none of them is a wrong answer for it."""
    mine: slice
    frames: np.ndarray
    code_ids: np.ndarray | None


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


def show(
    augmentation: ClipAugmentation,
    rows: Sequence[tuple[Clips, int]],
    epoch: int,
    empty: Callable[[tuple[int, ...]], np.ndarray] = _empty,
) -> tuple[UInt8[np.ndarray, "clip frame row col 3"], Int[np.ndarray, "clip region"] | None]:
    """Return pixels and codes (int64) of some clips as an epoch shows them; write each clip to its place in the batch.

    Args:
        epoch: counted from 0, or `EVAL_EPOCH`.
        empty: makes the uint8 array for the pixels.
    """
    clips, row = rows[0]
    side, num_frames = clips.frame_px, augmentation.num_frames or clips.num_frames(row)
    frames = empty((len(rows), num_frames, side, side, 3))
    codes = [augmentation.show(clips, row, epoch, out) for (clips, row), out in zip(rows, frames, strict=True)]
    found = [item.reshape(-1) for item in codes if item is not None]
    return frames, np.stack(found).astype(np.int64) if found else None


def load_clips(pair: ShardPair, group: int, views: bool = False, footers: Footers | None = None) -> Clips:
    """Load a row group with captions and frames, and with its codes if the pair has them.

    Args:
        views: read the numbers of the views too.
        footers: of the files, where they are known.

    Raises:
        ShardError: a row of the codes belongs to another clip than the row of the frames.
    """
    footer_of = footers.of if footers else lambda uri: None
    columns = ["clip_id", "captions", "frames"]
    table = read_group(pair.frames_uri, group, columns, footer_of(pair.frames_uri))
    if not pair.codes_uri:
        return Clips(table)
    columns = ["clip_id", "code_ids", *(["views"] if views else [])]
    codes = read_group(pair.codes_uri, group, columns, footer_of(pair.codes_uri))
    if not codes["clip_id"].equals(table["clip_id"]):
        raise ShardError(
            f"row group {group} of {pair.codes_uri} holds other clips than that of {pair.frames_uri}; "
            "recompute the codes with pipelines/precompute_codes.py --overwrite"
        )
    return Clips(table, codes)
