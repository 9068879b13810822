"""Readers of official annotations: their layouts in full, real extracts, errors that name file, record and field."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from evilm.config.items import ITEM_LAYOUTS, TASK_NAMES, ItemsConfig
from evilm.errors import ManifestError
from evilm.items.annotation_files import Annotations
from evilm.items.item import Item
from evilm.items.task_layouts import in_val, video_stem


def read(task: str, folder: Path, **settings: Any) -> list[Item]:
    return list(ITEM_LAYOUTS.get(task).read(Annotations(str(folder)), ItemsConfig(**settings)))


def splits(items: list[Item]) -> dict[str, int]:
    return dict(Counter(item.split for item in items))


EXTRACTS = {
    "msrvtt-qa": ("msrvtt_qa", {"val": 2000, "test": 2000}),
    "msrvtt-mc": ("msrvtt_mc", {"test": 1000}),
    "msvd-qa": ("msvd_qa", {"train": 3000, "val": 1500, "test": 1500}),
    "tgif-action": ("tgif_qa", {"train": 1433, "val": 67, "test": 1000}),
    "tgif-transition": ("tgif_qa", {"test": 1500}),
    "tgif-frame": ("tgif_qa", {"val": 1000, "test": 2000}),
    "didemo-retrieval": ("didemo", {"train": 397, "val": 649, "test": 603}),
    "hmdb51": ("hmdb51/testTrainMulti_7030_splits", {"train": 3380, "val": 190, "test": 1530}),
    "kinetics-400": ("kinetics400", {"test": 3000}),
}


def test_every_task_that_can_be_named_has_a_layout() -> None:
    assert all(ITEM_LAYOUTS.get(name).read for name in TASK_NAMES)


@pytest.mark.parametrize("task", EXTRACTS)
def test_real_extracts_are_read_whole(task: str, shared_data: Path) -> None:
    folder, expected = EXTRACTS[task]
    items = read(task, shared_data / "annotations" / folder)
    assert splits(items) == expected
    assert len({(item.split, item.item_id) for item in items}) == len(items)


def test_derived_extracts_of_msrvtt_are_read(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "annotations" / "msrvtt"
    items = read("msrvtt-retrieval", folder, protocol="full")
    assert splits(items) == {"val": 497, "test": 761}
    assert len({item.clip_id for item in items}) == 497 + 390
    for name in ("train_val_videodatainfo.DERIVED.json", "MSRVTT_JSFUSION_test.csv"):
        shutil.copyfile(folder / name, tmp_path / name)
    captioned = {item.clip_id for item in items if item.split == "val"}
    listed = (folder / "MSRVTT_train.7k.csv").read_text().splitlines()
    (tmp_path / "MSRVTT_train.7k.csv").write_text("\n".join(v for v in listed if v in {"video_id", *captioned}))
    items = read("msrvtt-retrieval", tmp_path, protocol="7k")
    assert {item.clip_id for item in items if item.split != "test"} == captioned, "all of them are in the 7k list"
    assert splits(items)["test"] == 500
    assert 0 < splits(items)["val"] < 50


def test_questions_about_test_videos_are_in_the_9k_list_only(shared_data: Path) -> None:
    for protocol, met in (("9k", 1990), ("7k", 0)):
        path = shared_data / "annotations" / "msrvtt" / f"MSRVTT_train.{protocol}.csv"
        listed = set(path.read_text().split()[1:])
        assert len(listed & {f"video{number}" for number in range(7010, 10_000)}) == met


BROKEN: list[tuple[str, str, str, Any, Any, str]] = [
    ("msrvtt-qa", "msrvtt_qa", "val_qa.json", '"question":"what plays?"', '"query":"what plays?"', "record 2: no fiel"),
    ("msrvtt-qa", "msrvtt_qa", "val_qa.json", '"video_id":6513', '"video_id":"x"', "record 0: video_id = 'x' is not a"),
    ("msrvtt-qa", "msrvtt_qa", "test_qa.json", "]", "", "test_qa.json is not JSON"),
    ("msrvtt-mc", "msrvtt_mc", "msrvtt_mc_test.jsonl", '"answer": "0"', '"answer": "7"', "record 0: answer = 7, accep"),
    ("msrvtt-mc", "msrvtt_mc", "msrvtt_mc_test.jsonl", '"options": [', '"options": ["more", ', "is not a list of 5 te"),
    ("msrvtt-mc", "msrvtt_mc", "msrvtt_mc_test.jsonl", '"qid": "mc0", ', "", "record 0: no field 'qid'"),
    ("msvd-qa", "msvd_qa", "test_qa.json", '"video_id":1451', '"video_id":9999', "record 0: video_id = 9999 is not in"),
    ("msvd-qa", "msvd_qa", "youtube_mapping.txt", "vid1\n", "video one\n", "record 0: .* is not `YOUTUBEID_START_END "),
    ("msvd-qa", "msvd_qa", "val_qa.json", '"answer":"', '"answer":" ","a":"', "record 0: answer is empty"),
    ("tgif-action", "tgif_qa", "Test_action_question.csv", "gif_name\t", "name\t", "has no column 'gif_name'"),
    ("tgif-action", "tgif_qa", "Test_action_question.csv", "\tstuff marshmallow", "", "record 0: 9 fields, 10 are exp"),
    ("tgif-action", "tgif_qa", "Test_action_question.csv", "\t4\tACTION4\t", "\t5\tACTION4\t", "record 0: answer = 5,"),
    ("tgif-frame", "tgif_qa", "Test_frameqa_question.csv", "cookie\t0\t", "cookie\t4\t", "record 0: type = 4, accepte"),
    ("tgif-frame", "tgif_qa", "frameqa_val.jsonl", '"answer": "bomb"', '"answer": 3', "record 0: answer = 3 is not a "),
    ("tgif-frame", "tgif_qa", "frameqa_val.jsonl", "}\n", "\n", "record 0: not JSON"),
    ("didemo-retrieval", "didemo", "test_data.json", '"description":"', '"text":"', "record 0: no field 'description'"),
    ("didemo-retrieval", "didemo", "val_data.json", "[{", '[7, {', "record 0: 7 is not an object"),
    ("didemo-retrieval", "didemo", "DiDeMo_train.paragraph.tsv", "\t", " ", "record 0: 1 fields, 2 are expected"),
    ("tgif-transition", "tgif_qa", "Test_transition_question.csv", "\ta3\t", "\tb3\t", "record 0: no field 'a3'"),
    ("tgif-transition", "tgif_qa", "Test_transition_question.csv", "\r\n", "\tx\r\n", "record 0: 10 fields, 11 are e"),
    ("tgif-transition", "tgif_qa", "Test_transition_question.csv", "question\t", "query\t", "no column 'question' "),
    ("msrvtt-retrieval", "msrvtt", "train_val_videodatainfo.DERIVED.json", '"validate"', '"dev"', "0: split = 'dev',"),
    ("msrvtt-retrieval", "msrvtt", "test_videodatainfo.DERIVED.json", '"caption"', '"text"', "0: no field 'caption'"),
    ("msrvtt-retrieval", "msrvtt", "MSRVTT_JSFUSION_test.csv", "ret0,", "", "record 0: 3 fields, 4 are expected"),
    ("msrvtt-retrieval", "msrvtt", "MSRVTT_train.9k.csv", "video_id", "id", "has no column 'video_id'"),
    ("hmdb51", "hmdb51/testTrainMulti_7030_splits", "clap_test_split1.txt", ".avi 1", ".avi 3", "record .* is not `FI"),
    ("hmdb51", "hmdb51/testTrainMulti_7030_splits", "wave_test_split1.txt", " ", "_", "record 0: .* is not `FILE.avi"),
    ("hmdb51", "hmdb51/testTrainMulti_7030_splits", "kiss_test_split1.txt", ".avi 2", ".avi", "record .* is not `FILE"),
    ("kinetics-400", "kinetics400", "kinetics-400_val.csv", "label,", "class,", "has no column 'label'"),
    ("kinetics-400", "kinetics400", "kinetics-400_val.csv", ",417,", ",4:17,", "record 0: time_start = '4:17' is not "),
    ("kinetics-400", "kinetics400", "kinetics-400_val.csv", "val,0\n", "val\n", "record 0: 5 fields, 6 are expected"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "folder", "name", "old", "new", "message"), BROKEN)
def test_broken_extract_is_rejected_in_one_line(
    task: str, folder: str, name: str, old: str, new: str, message: str, shared_data: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "annotations"
    shutil.copytree(shared_data / "annotations" / folder, copied, copy_function=shutil.copyfile)
    copied.chmod(0o755)
    text = (copied / name).read_bytes().decode()
    assert old in text
    place = text.rindex(old) if old == "]" else text.index(old)
    (copied / name).write_bytes((text[:place] + new + text[place + len(old) :]).encode())
    with pytest.raises(ManifestError, match=message) as caught:
        read(task, copied)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_official_msrvtt_records_in_full(tmp_path: Path) -> None:
    videos = [
        {
            "id": k,
            "video_id": f"video{k}",
            "category": 9,
            "url": "u",
            "start time": 1.5,
            "end time": 9.0,
            "split": split,
        }
        for k, split in enumerate(["train", "train", "validate"])
    ]
    sentences = [
        {"sen_id": 20 * k + n, "video_id": f"video{k}", "caption": f"{k} {n}"} for k in range(3) for n in (0, 1)
    ]
    (tmp_path / "train_val_videodatainfo.json").write_text(
        json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": sentences})
    )
    (tmp_path / "MSRVTT_train.7k.csv").write_text("video_id\nvideo0\nvideo1\nvideo2\n")
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr9,video9,a man talks\n")
    assert splits(read("msrvtt-retrieval", tmp_path, protocol="7k", val_share=0)) == {"train": 6, "test": 1}
    assert splits(read("msrvtt-retrieval", tmp_path, protocol="full")) == {"train": 4, "val": 2}
    (tmp_path / "MSRVTT_train.7k.csv").write_text("video_id\nvideo0\nvideo9\n")
    with pytest.raises(ManifestError, match=r"MSRVTT_train\.7k\.csv, record 1: video9 is also a test video"):
        read("msrvtt-retrieval", tmp_path, protocol="7k")
    with pytest.raises(ManifestError, match=r"has no file of protocol 9k: expected MSRVTT_train\.9k\.csv"):
        read("msrvtt-retrieval", tmp_path, protocol="9k")


def test_tgif_records_of_the_official_training_files(tmp_path: Path) -> None:
    columns = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\r\n"
    rows = [f'gif{k}\twhat is "it ?\tdog\t{k % 4}\tFRAMEQA{k}\t{k}\tthe dog is it\r\n' for k in range(400)]
    (tmp_path / "Train_frameqa_question.csv").write_bytes((columns + "".join(rows)).encode())
    items = read("tgif-frame", tmp_path, val_share=0.25)
    assert 70 < splits(items)["val"] < 130
    assert {item.type for item in items} == {"object", "number", "color", "location"}
    assert not any("the dog is it" in str(item) for item in items), "the description holds the answer"
    assert all((item.split == "val") == in_val(item.clip_id, 0.25) for item in items)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a@N00_1_b.mov", "a@N00_1_b"), ("a@N00_1_b.", "a@N00_1_b"), ("a@N00_1_b", "a@N00_1_b"), ("a.b.MTS", "a.b")],
)
def test_names_of_didemo_videos_lose_their_ending(name: str, stem: str) -> None:
    assert video_stem(name) == stem


def test_folder_without_annotations_names_the_expected_files(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"none of the expected files \(train: train_qa.json or msrvtt_qa_train.jsonl"
    ):
        read("msrvtt-qa", tmp_path)


def test_an_official_val_file_leaves_the_training_file_whole(tmp_path: Path) -> None:
    rows = [{"gif_name": f"g{n}", "question": "what ?", "answer": "cat", "answer_type": "object"} for n in range(60)]
    for split, part in (("train", rows[:40]), ("val", rows[40:50]), ("test", rows[50:])):
        (tmp_path / f"frameqa_{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    assert splits(read("tgif-frame", tmp_path, val_share=0.5)) == {"train": 40, "val": 10, "test": 10}


def test_a_val_file_that_is_a_part_of_the_training_file_is_named(tmp_path: Path) -> None:
    columns = "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\r\n"
    rows = [f"gif{k}\twhat ?\tdog\t0\tFRAMEQA{k}\t{k}\ta dog\r\n" for k in range(4)]
    (tmp_path / "Train_frameqa_question.csv").write_bytes((columns + "".join(rows)).encode())
    row = {"gif_name": "gif2", "question": "what ?", "answer": "dog", "answer_type": "object"}
    (tmp_path / "frameqa_val.jsonl").write_text(json.dumps(row))
    message = r"Train_frameqa_question.csv, record 2: gif2 is also in frameqa_val.jsonl; remove frameqa_val.jsonl"
    with pytest.raises(ManifestError, match=message) as caught:
        read("tgif-frame", tmp_path)
    assert "fix the record" not in str(caught.value)


def test_a_listed_video_without_captions_is_named(tmp_path: Path) -> None:
    videos = [{"video_id": "video1", "split": "train"}, {"video_id": "video9", "split": "test"}]
    sentences = [{"video_id": video["video_id"], "sen_id": n, "caption": "a cat"} for n, video in enumerate(videos)]
    (tmp_path / "train_val_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr9,video9,a cat\n")
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo1\nvideo2\n")
    with pytest.raises(ManifestError, match=r"MSRVTT_train.9k.csv, record 1: video2 has no captions"):
        read("msrvtt-retrieval", tmp_path)


def test_a_correct_option_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    row = {"gif_name": "g", "question": "what ?", "options": ["run", "run", "a", "b", "c"], "answer": 1}
    (tmp_path / "action_test.jsonl").write_text(json.dumps(row))
    with pytest.raises(ManifestError, match="record 0: the correct option 'run' is listed more than once"):
        read("tgif-action", tmp_path)
