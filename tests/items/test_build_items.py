"""Items built from annotations and joined with frame shards: coverage, labels, reuse, and videos to shard."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evilm.config.stages import BuildItems, ShardVideos
from evilm.errors import ConfigError, ManifestError, ShardError, UsageError
from evilm.ingest.shard_videos import shard_videos
from evilm.items.annotation_files import EMBEDDED_MARK
from evilm.items.build_items import build_items
from evilm.items.item_tables import ItemsManifest
from helpers.paths import ROOT
from helpers.random_model import named_frames
from helpers.small_corpus import in_this_process
from helpers.video_files import write_video


def write_questions(folder: Path, split: str, answers: Sequence[str], first: int = 0) -> None:
    """One question on each of the clips video0, video1, ..."""
    rows = [
        {"answer": answer, "category_id": 1, "id": first + k, "question": "what is shown?", "video_id": first + k}
        for k, answer in enumerate(answers)
    ]
    (folder / f"{split}_qa.json").write_text(json.dumps(rows))


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    folder = tmp_path / "annotations"
    folder.mkdir()
    write_questions(folder, "train", ["cat", "cat", "dog", "cow"])
    write_questions(folder, "test", ["cat", "owl"], first=4)
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):  # video5 is missing
        write_video(folder / f"video{number}.mp4", num_frames=8, first_picture=number)
    return folder


def config(folder: Path, out: Path, **values: Any) -> BuildItems:
    settings = BuildItems(task="msrvtt-qa", annotations=str(folder), out=str(out))
    return settings.override({"items.num_answers": 2, **values})


def shard(manifest: Path, videos: Path, out: Path) -> dict[str, Any]:
    settings = ShardVideos(manifest=str(manifest), videos=str(videos), out=str(out))
    return shard_videos(settings.override({"sampling.frame_px": 64}), in_this_process)


def test_answers_outside_the_vocabulary_lower_the_ceiling(annotations: Path, tmp_path: Path) -> None:
    summary = build_items(config(annotations, tmp_path / "items"))
    items = ItemsManifest.load(str(tmp_path / "items"))
    assert items.labels == ("cat", "cow"), "the two most frequent training answers, equal ones by name"
    assert items.read("train")["label"].to_pylist() == [0, 0, -1, 1]
    assert (items.splits["train"].ceiling, items.splits["test"].ceiling) == (0.75, 0.5)
    assert items.fingerprint == summary["fingerprint"]


def test_listed_videos_are_sharded_and_missing_ones_are_counted(
    annotations: Path, videos: Path, tmp_path: Path
) -> None:
    first = tmp_path / "items"
    build_items(config(annotations, first))
    frames = tmp_path / "frames"
    assert shard(first / "videos.csv", videos, frames)["clips"] == {"test": 1, "train": 4}
    joined = config(annotations, tmp_path / "joined", frames=str(frames))
    with pytest.raises(ConfigError, match=r"split test: 1 of 2 videos have no frames in .* \(video5, \.\.\.\)"):
        build_items(joined)
    summary = build_items(joined.override({"items.max_missing_share": 0.5}))
    test = ItemsManifest.load(str(tmp_path / "joined")).splits["test"]
    assert (test.num_items, test.num_missing_items, test.coverage) == (1, 1, 0.5)
    assert (tmp_path / "joined" / "missing.txt").read_text() == "test\tvideo5\n"
    assert summary["inputs"]["frames"]


def test_the_same_command_reuses_and_other_annotations_are_rejected(annotations: Path, tmp_path: Path) -> None:
    settings = config(annotations, tmp_path / "items")
    first = build_items(settings)
    assert build_items(settings) == first | {"reused": True}
    (tmp_path / "items" / "test.parquet").unlink()
    assert not build_items(settings)["reused"]
    assert (tmp_path / "items" / "test.parquet").exists()
    write_questions(annotations, "train", ["cat", "cat", "dog", "dog"])
    with pytest.raises(ConfigError, match="annotations"):
        build_items(settings)
    assert build_items(settings.override({"overwrite": True}))["fingerprint"] != first["fingerprint"]


def test_replaced_table_is_noticed(annotations: Path, tmp_path: Path) -> None:
    build_items(config(annotations, tmp_path / "items"))
    (tmp_path / "items" / "test.parquet").write_bytes((tmp_path / "items" / "train.parquet").read_bytes())
    items = ItemsManifest.load(str(tmp_path / "items"))
    with pytest.raises(ShardError, match=r"test\.parquet is damaged or was replaced; build the items again"):
        items.read("test")
    with pytest.raises(ShardError, match="has no items of split 'val', only train, test"):
        items.read("val")


def test_item_that_is_listed_twice_is_rejected(annotations: Path, tmp_path: Path) -> None:
    path = annotations / "train_qa.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), json.loads(path.read_text())[0]]))
    with pytest.raises(ManifestError, match=r"split train: 1 duplicate item ids, e\.g\. '0'; remove the duplicates"):
        build_items(config(annotations, tmp_path / "items"))
    assert not (tmp_path / "items" / "items.json").exists()


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"task": ""}, UsageError, "--task is missing; use msrvtt-retrieval, msrvtt-qa"),
        ({"task": "msrvtt"}, ConfigError, "task = 'msrvtt': not a downstream task; use msrvtt-retrieval, msrvtt-qa"),
        ({"annotations": ""}, UsageError, "--annotations is missing; name the folder of the official files"),
        ({"annotations": "/nowhere"}, ManifestError, "/nowhere has none of the expected files"),
        ({"frames": "/nowhere"}, ShardError, "no finished frames at /nowhere"),
    ],
)
def test_missing_and_wrong_settings_end_in_a_line(
    values: dict[str, str], error: type[Exception], message: str, annotations: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        build_items(config(annotations, tmp_path / "items", **values))


def test_manifest_of_videos_names_folders_and_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    folder.mkdir()
    (folder / "clap_test_split1.txt").write_text('#1_"Hey";_you,_clap_u_goo_0.avi 1 \nb_clap_1.avi 2 \n')
    settings = BuildItems(task="hmdb51", annotations=str(folder), out=str(tmp_path / "items"))
    build_items(settings.override({"items.val_share": 0.0}))
    rows = list(csv.DictReader((tmp_path / "items" / "videos.csv").open()))
    assert [(row["page_dir"], row["videoid"], row["split"]) for row in rows] == [
        ("clap", '#1_"Hey";_you,_clap_u_goo_0', "train"),
        ("clap", "b_clap_1", "test"),
    ]


def test_a_clip_in_two_splits_is_named(annotations: Path, tmp_path: Path) -> None:
    write_questions(annotations, "val", ["cat"], first=3)
    with pytest.raises(
        ManifestError, match="1 clips are in several splits, such as video3 in train and val; each clip may be in one"
    ):
        build_items(config(annotations, tmp_path / "items"))


def test_a_class_that_the_list_lacks_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "k400"
    folder.mkdir()
    for split, label in (("train", "run"), ("val", "jump")):
        row = f"{label},id{split},0,10,{split},0\n"
        (folder / f"kinetics-400_{split}.csv").write_text(f"label,youtube_id,time_start,time_end,split,is_cc\n{row}")
    (folder / "label_map_k400.txt").write_text("run\nwalk\n")
    with pytest.raises(
        ManifestError,
        match=r"kinetics-400: 1 classes of the items are missing from the class list, e\.g\. 'jump'; use the official",
    ):
        build_items(config(folder, tmp_path / "items", task="kinetics-400"))


def write_kinetics(folder: Path, *rows: str) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    folder.mkdir()
    (folder / "kinetics-400_val.csv").write_text(header + "".join(f"{row},val,0\n" for row in rows))


def test_clips_of_kinetics_are_found_by_the_id_of_their_video_unless_it_has_several(tmp_path: Path) -> None:
    write_kinetics(tmp_path / "k400", "run,a,0,10", "run,b,0,10", "jump,b,20,30", "jump,c,5,15")
    frames = named_frames(tmp_path / "frames", ["a", "b", "c_000005_000015", "c"])
    out = tmp_path / "items"
    build_items(
        config(tmp_path / "k400", out, task="kinetics-400", frames=frames.uri, **{"items.max_missing_share": 0.5})
    )
    assert ItemsManifest.load(str(out)).read("test")["clip_id"].to_pylist() == ["a", "c_000005_000015"]


def test_items_keep_the_mark_of_the_embedded_corpus(annotations: Path, tmp_path: Path) -> None:
    first = build_items(config(annotations, tmp_path / "items"))
    assert not ItemsManifest.load(str(tmp_path / "items")).embedded
    (annotations / EMBEDDED_MARK).write_text("")
    assert build_items(config(annotations, tmp_path / "items")) == first | {"reused": True}, "the same items"
    build_items(config(annotations, tmp_path / "marked"))
    assert ItemsManifest.load(str(tmp_path / "marked")).embedded
    written = json.loads((tmp_path / "marked" / "items.json").read_text())
    del written["embedded"]  # as of an earlier version
    (tmp_path / "marked" / "items.json").write_text(json.dumps(written))
    assert not ItemsManifest.load(str(tmp_path / "marked")).embedded


def test_layout_of_the_docs_builds_items_of_an_own_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(
        r"```python\n(from evilm.items.item .*?)```", (ROOT / "docs/downstream.md").read_text(), re.S
    )
    (tmp_path / "birds.py").write_text(example)
    (tmp_path / "birds.csv").write_text(
        "split,video,question,answer\ntrain,v1,which bird?,robin\ntrain,v2,which bird?,owl\ntest,v3,which bird?,owl\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = BuildItems(task="birds:BIRDS", annotations=str(tmp_path), out=str(tmp_path / "items"))
    assert build_items(settings)["num_labels"] == 2
    items = ItemsManifest.load(str(tmp_path / "items"))
    assert (items.kind, items.labels) == ("answer", ("owl", "robin"))
    assert items.read("test").to_pylist()[0]["clip_id"] == "v3"
    with pytest.raises(ValueError, match=r"not a downstream task; use msrvtt-retrieval, .*or module:attribute"):
        BuildItems(task="bird")
