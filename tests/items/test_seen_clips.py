"""The set of clips that a model was trained on: by id and by video file, over several trainings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evilm.items.seen_clips import SEEN_FILE, clip_hashes, is_seen, read_seen, write_seen
from helpers.random_model import make_frames


def test_clips_are_found_by_id_and_by_video(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames", 8, "train")
    ids, hashes = clip_hashes(frames, ["train"], {"c000", "c001"})
    assert ids == ["c000", "c001"]
    write_seen(str(tmp_path / "model"), hashes)
    seen = read_seen(str(tmp_path / "model"))
    assert seen is not None
    _, every = clip_hashes(frames)
    assert is_seen(seen.trained, every).all(), "all clips of these shards were cut from one video"
    renamed = every.copy()
    renamed[:, 1] += 1  # other videos
    assert is_seen(seen.trained, renamed).tolist() == [True, True] + [False] * 6


def test_a_model_has_seen_what_the_one_it_started_from_has(tmp_path: Path) -> None:
    first, second, model = np.array([[1, 2]], np.uint64), np.array([[3, 4]], np.uint64), str(tmp_path / "second")
    write_seen(str(tmp_path / "first"), first)
    write_seen(model, second, [str(tmp_path / "first")])
    seen = read_seen(model)
    assert seen is not None
    assert seen.trained.tolist() == [1, 2, 3, 4]


def test_a_checkpoint_has_seen_what_its_training_has(tmp_path: Path) -> None:
    write_seen(str(tmp_path / "model"), np.array([[1, 2]], np.uint64))
    seen = read_seen(str(tmp_path / "model" / "checkpoints" / "step_00000004-001"))
    assert seen is not None
    assert seen.trained.tolist() == [1, 2]


def test_what_an_older_model_has_seen_is_not_known_nor_of_models_that_start_from_it(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    assert read_seen(str(tmp_path / "old")) is None
    write_seen(str(tmp_path / "new"), np.array([[1, 2]], np.uint64), [str(tmp_path / "old")])
    assert read_seen(str(tmp_path / "new")) is None


def test_clips_that_chose_the_best_step_are_kept_apart(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    write_seen(first, np.array([[1, 2]], np.uint64), chosen_on=np.array([[3, 4], [5, 6]], np.uint64))
    write_seen(second, np.array([[3, 4]], np.uint64), [first], np.array([[1, 7]], np.uint64))
    for model, trained, chosen in ((first, [1, 2], [3, 4, 5, 6]), (second, [1, 2, 3, 4], [5, 6, 7])):
        seen = read_seen(model)
        assert seen is not None
        assert (seen.trained.tolist(), seen.chosen.tolist()) == (trained, chosen)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"hash": np.array([1, 2], np.uint64)}), tmp_path / SEEN_FILE)
    seen = read_seen(str(tmp_path))
    assert seen is not None
    assert (seen.trained.tolist(), seen.chosen.tolist()) == ([1, 2], [])


def test_clips_of_other_splits_are_not_seen(tmp_path: Path) -> None:
    frames = make_frames(tmp_path, 8, "test")
    assert clip_hashes(frames, ["train"])[0] == []
    assert len(clip_hashes(replace(frames))[0]) == 8
