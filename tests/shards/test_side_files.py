"""Side files: what they hold is what the shards hold, and a machine reads or makes each of them once."""

from pathlib import Path

import fsspec
import numpy as np
import pytest

from evilm.dataloader.loader import DataLoader
from evilm.dataloader.sampler import TrainSampler
from evilm.errors import ShardError
from evilm.io import storage
from evilm.shards import FrameManifest, ShardPair, Side, open_side, publish_side, read_group
from helpers.stored_frames import CAPTIONS, store_frames

pytestmark = pytest.mark.usefixtures("machine_cache")
SIZES = {"train": [[4, 1], [3]], "val": [[2]]}


@pytest.fixture
def frames(tmp_path: Path) -> FrameManifest:
    return store_frames(tmp_path / "frames", SIZES)


def _side_files(folder: Path) -> list[str]:
    return sorted(file.name.rsplit("-", 1)[0] for file in folder.glob("*.arrow"))


def _pairs(frames: FrameManifest, split: str) -> list[ShardPair]:
    """The shards without codes."""
    shards = frames.of_split(split)
    return [ShardPair(storage.join(frames.uri, s.file), "", s.num_clips, s.row_groups) for s in shards]


def _remote(frames: FrameManifest) -> FrameManifest:
    """A copy on a filesystem that is not local."""
    memory = fsspec.filesystem("memory")
    if memory.exists("/remote"):
        memory.rm("/remote", recursive=True)
    memory.put(frames.uri, "/remote", recursive=True)
    return FrameManifest.load("memory://remote")


def test_side_files_hold_captions_and_footers_of_the_shards(frames: FrameManifest) -> None:
    publish_side(frames)
    assert _side_files(Path(frames.uri)) == ["captions-train", "captions-val", "footers-train", "footers-val"]
    side = open_side(frames, "train")
    clip_ids, captions = side.captions.take(np.array([6, 0, 3, 5, 3]))
    assert clip_ids == ["train006", "train000", "train003", "train005", "train003"]
    assert captions == [[CAPTIONS[n % len(CAPTIONS)]] for n in (6, 0, 3, 5, 3)]
    for shard in frames.of_split("train"):
        uri = storage.join(frames.uri, shard.file)
        footer = side.footers.of(uri)
        assert [footer.row_group(g).num_rows for g in range(footer.num_row_groups)] == shard.row_groups
        for group in range(len(shard.row_groups)):
            columns = ["clip_id", "captions", "frames"]
            assert read_group(uri, group, columns, footer).equals(read_group(uri, group, columns))
    ids, _ = open_side(frames, "val").captions.take(np.array([1]))
    assert ids == ["val001"]


def test_remote_row_group_read_with_its_footer_is_the_same(frames: FrameManifest) -> None:
    publish_side(frames)
    remote = _remote(frames)
    side = open_side(remote, "train")
    for shard in remote.of_split("train"):
        uri, local = storage.join(remote.uri, shard.file), storage.join(frames.uri, shard.file)
        for columns in (["clip_id", "frames"], ["captions"]):
            assert read_group(uri, 0, columns, side.footers.of(uri)).equals(read_group(local, 0, columns))


@pytest.mark.parametrize("published", [True, False])
def test_remote_side_files_are_copied_or_made_once_per_machine(
    frames: FrameManifest, machine_cache: Path, published: bool
) -> None:
    if published:
        publish_side(frames)
    remote = _remote(frames)
    ids, _ = open_side(remote, "train").captions.take(np.arange(8))
    assert ids == [f"train{n:03d}" for n in range(8)]
    assert _side_files(machine_cache) == ["captions-train", "footers-train"]
    fsspec.filesystem("memory").rm("/remote", recursive=True)
    again, _ = open_side(remote, "train").captions.take(np.arange(8))
    assert again == ids, "nothing is read twice"


def test_shards_without_side_files_are_read(frames: FrameManifest, machine_cache: Path) -> None:
    pairs = _pairs(frames, "train")
    order = TrainSampler([item.row_groups for item in pairs], 3, 0, 2)

    def rows() -> list[tuple[list[str], list[str], int]]:
        loader = DataLoader(pairs, order, lambda rows: rows, side=open_side(frames, "train"))
        return [(r.clip_ids, r.captions, int(r.frames.sum())) for r in loader.batches(0, 2 * order.num_steps)]

    made = rows()
    assert _side_files(machine_cache) == ["captions-train", "footers-train"]
    publish_side(frames, replace=False)
    assert rows() == made
    without = DataLoader(pairs, order, lambda rows: rows).batches(0, 2 * order.num_steps)
    assert [(r.clip_ids, r.captions, int(r.frames.sum())) for r in without] == made


def test_publishing_again_replaces_outdated_side_files(frames: FrameManifest, tmp_path: Path) -> None:
    folder = Path(frames.uri)
    publish_side(frames)
    before = set(folder.glob("*.arrow"))
    times = {file: file.stat().st_mtime_ns for file in before}
    publish_side(frames)
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.arrow")} == times
    more = store_frames(folder, SIZES, seed=1)
    publish_side(more)
    assert not before & set(folder.glob("*.arrow"))
    assert _side_files(folder) == ["captions-train", "captions-val", "footers-train", "footers-val"]


def test_damaged_side_file_is_named(frames: FrameManifest) -> None:
    publish_side(frames)
    (file,) = Path(frames.uri).glob("captions-train-*.arrow")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ShardError, match=r"cannot read .*captions-train-.*; delete the file; it will be rebuilt"):
        open_side(frames, "train")


def test_captions_of_other_clips_are_rejected(frames: FrameManifest) -> None:
    publish_side(frames)
    side = Side(open_side(frames, "val").captions, open_side(frames, "train").footers)
    loader = DataLoader(_pairs(frames, "train"), TrainSampler([[2]], 2, 0, 1), lambda rows: rows, side=side)
    with pytest.raises(ShardError, match=r"the captions file has clip val000 where .*; delete the files captions-"):
        list(loader.batches(0, 1))
