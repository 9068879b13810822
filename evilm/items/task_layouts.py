"""The official layouts of downstream data sets, by task: which files they consist of, and what each record means.

Splits are train, val and test. Where a data set has no official val, videos of its training list are set aside by
`in_val`, so that no model is selected on test.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from evilm.config.data import VIDEO_ENDINGS
from evilm.config.items import ItemsConfig
from evilm.errors import ManifestError
from evilm.items.annotation_files import Annotations, Record
from evilm.items.item import Item, Kind

_TGIF_TYPES = ("object", "number", "color", "location")
_MSRVTT_SPLITS = {"train": "train", "validate": "val", "test": "test"}


@dataclass(frozen=True)
class Layout:
    """Layout of a task's annotations; `ITEM_LAYOUTS` finds it by name."""

    kind: Kind
    read: Callable[[Annotations, ItemsConfig], Iterator[Item]]
    labels: tuple[str, ...] = ()
    """Files, by pattern, that list the answers or classes in order; without one they come from the train split."""


def in_val(clip_id: str, share: float) -> bool:
    """Choose clips of a training list for val: by a hash, so that all items of a clip are on one side."""
    return int(hashlib.sha256(f"val {clip_id}".encode()).hexdigest()[:8], 16) < share * 2**32


def _need(annotations: Annotations, what: str, *patterns: str) -> str:
    """Find a file, which has to be there."""
    if found := annotations.find(*patterns):
        return found
    raise ManifestError(f"{annotations.uri} has no file of {what}: expected {' or '.join(patterns)}")


def _splits(annotations: Annotations, files: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Yield split and file of those that are there, at least one."""
    found = {split: annotations.find(*patterns) for split, patterns in files.items()}
    if not any(found.values()):
        expected = ", ".join(f"{split}: {' or '.join(patterns)}" for split, patterns in files.items())
        raise ManifestError(f"{annotations.uri} has none of the expected files ({expected})")
    yield from ((split, name) for split, name in found.items() if name)


def _first_word(question: str) -> str:
    return question.split(maxsplit=1)[0].lower().strip("?.,'\"")


# MSR-VTT


def _msrvtt_captions(annotations: Annotations) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Return the official split, and id and text of each caption, by video."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name in ("train*videodatainfo*.json", "test*videodatainfo*.json"):
        if not (file := annotations.find(name)):
            continue
        content = annotations.json_object(file)
        for video in content.records("videos"):
            split = video.text("split")
            if split not in _MSRVTT_SPLITS:
                raise video.error(f"split = {split!r}, accepted are {', '.join(_MSRVTT_SPLITS)}")
            found[video.text("video_id")] = (_MSRVTT_SPLITS[split], [])
        for sentence in content.records("sentences"):
            clip = sentence.text("video_id")
            if clip not in found:
                raise sentence.error(f"video_id = {clip!r} is not among the videos")
            found[clip][1].append((f"sen{sentence.whole_number('sen_id', 0)}", sentence.text("caption")))
    if not found:
        raise ManifestError(f"{annotations.uri} has no train_val_videodatainfo.json and no test_videodatainfo.json")
    return found


def read_msrvtt_retrieval(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read captions of the training list of a protocol, and one caption for each of the 1,000 test videos of 1k-A.

    The protocol `full` takes the official splits, with all captions.
    """
    captions = _msrvtt_captions(annotations)
    if config.protocol == "full":
        for clip, (split, texts) in captions.items():
            yield from (Item(split, item, clip, text) for item, text in texts)
        return
    name = _need(annotations, f"protocol {config.protocol}", f"MSRVTT_train.{config.protocol}.csv")
    test = _need(annotations, "the 1k-A test split", "MSRVTT_JSFUSION_test.csv")
    tested = set()
    for row in annotations.table(test, ("key", "vid_key", "video_id", "sentence")):
        tested.add(row.text("video_id"))
        yield Item("test", row.text("key"), row.text("video_id"), row.text("sentence"))
    for row in annotations.table(name, ("video_id",)):
        clip = row.text("video_id")
        if clip in tested:
            raise row.error(f"{clip} is also a test video")
        split = "val" if in_val(clip, config.val_share) else "train"
        _, texts = captions.get(clip, ("", []))
        if not texts:
            raise row.error(f"{clip} has no captions in the *videodatainfo.json files")
        yield from (Item(split, item, clip, text) for item, text in texts)


def read_msrvtt_qa(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read questions on MSR-VTT, as the official JSON lists or as JSON lines."""
    files = {split: (f"{split}_qa.json", f"msrvtt_qa_{split}.jsonl") for split in ("train", "val", "test")}
    for split, name in _splits(annotations, files):
        for record in annotations.json_objects(name):
            if name.endswith("jsonl"):
                clip = record.text("video_id")
            else:
                clip = f"video{record.whole_number('video_id', 0, 9999)}"
            yield _question(record, split, clip)


def _question(record: Record, split: str, clip: str) -> Item:
    question = record.text("question")
    kind = record.text("answer_type") if "answer_type" in record.values else _first_word(question)
    number = str(record.whole_number("id", 0)) if "id" in record.values else f"{split}{record.number}"
    return Item(split, number, clip, question, record.text("answer"), type=kind)


def read_msrvtt_choice(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read five captions for each test video, one of which is right."""
    name = _need(annotations, "the choices", "msrvtt_mc_test.jsonl")
    for record in annotations.json_objects(name):
        options = record.texts("options", 5)
        if len(set(options)) < len(options):
            raise record.error("two options are equal")
        right = options[record.whole_number("answer", 0, 4)]
        yield Item("test", record.text("qid"), record.text("clip_name"), "", right, options)


# MSVD


def read_msvd_qa(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read questions on MSVD; `youtube_mapping.txt` says which file a video's number stands for."""
    files = {}
    mapping = _need(annotations, "the names of the videos", "youtube_mapping.txt")
    for number, line in enumerate(annotations.lines(mapping)):
        name, _, video = line.rpartition(" ")
        if not name or not video.startswith("vid") or not video[3:].isdigit():
            raise ManifestError(f"{mapping}, record {number}: {line!r} is not `YOUTUBEID_START_END vidN`")
        files[int(video[3:])] = name.strip()
    for split, name in _splits(annotations, {s: (f"{s}_qa.json",) for s in ("train", "val", "test")}):
        for record in annotations.json_objects(name):
            video = record.whole_number("video_id", 1)
            if video not in files:
                raise record.error(f"video_id = {video} is not in {mapping}")
            yield _question(record, split, files[video])


# TGIF-QA


def _tgif(annotations: Annotations, config: ItemsConfig, task: str) -> Iterator[tuple[str, Record]]:
    """Yield split and record; val is a part of the training videos."""
    files = {
        "train": (f"Train_{task}_question.csv", f"{task}_train.jsonl"),
        "val": (f"{task}_val.jsonl",),
        "test": (f"Test_{task}_question.csv", f"{task}_test.jsonl"),
    }
    in_file: set[str] = set()
    if val := annotations.find(*files["val"]):
        in_file = {record.text("gif_name") for record in annotations.json_objects(val)}
    for split, name in _splits(annotations, files):
        if name.endswith("jsonl"):
            records = annotations.json_objects(name)
        else:
            records = annotations.table(name, ("gif_name", "question", "answer"), delimiter="\t", quoted=False)
        for record in records:
            clip = record.text("gif_name")
            if split == "train" and clip in in_file:
                raise ManifestError(
                    f"{name}, record {record.number}: {clip} is also in {val}; remove {val}, and val is a part of "
                    f"{name}, or take the {task}_train.jsonl that belongs to {val} in place of {name}"
                )
            is_val = split == "train" and not val and in_val(clip, config.val_share)
            yield "val" if is_val else split, record


def _tgif_choice(task: str) -> Callable[[Annotations, ItemsConfig], Iterator[Item]]:
    def read(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
        for split, record in _tgif(annotations, config, task):
            if "options" in record.values:
                options = record.texts("options", 5)
            else:
                options = tuple(record.text(f"a{k}") for k in range(1, 6))
            right = options[record.whole_number("answer", 0, 4)]
            if options.count(right) > 1:
                raise record.error(f"the correct option {right!r} is listed more than once")
            yield Item(split, _tgif_id(split, record), record.text("gif_name"), record.text("question"), right, options)

    return read


def read_tgif_frame(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read questions on a frame of a GIF. The column `description` holds the answer and is never read."""
    for split, record in _tgif(annotations, config, "frameqa"):
        if "answer_type" in record.values:
            kind = record.text("answer_type")
        else:
            kind = _TGIF_TYPES[record.whole_number("type", 0, len(_TGIF_TYPES) - 1)]
        clip, question = record.text("gif_name"), record.text("question")
        yield Item(split, _tgif_id(split, record), clip, question, record.text("answer"), type=kind)


def _tgif_id(split: str, record: Record) -> str:
    return record.text("vid_id") if "vid_id" in record.values else f"{split}{record.number}"


# DiDeMo


def read_didemo(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read paragraphs: all descriptions of a video joined, from the official JSON or from the TSV of paragraphs."""
    for split, name in _splits(
        annotations, {s: (f"{s}_data.json", f"DiDeMo_{s}*.tsv") for s in ("train", "val", "test")}
    ):
        paragraphs: dict[str, list[str]] = {}
        if name.endswith("json"):
            for record in annotations.json_objects(name):
                paragraphs.setdefault(video_stem(record.text("video")), []).append(record.text("description"))
        else:
            for record in annotations.table(name, ("text", "video"), delimiter="\t", header=False):
                clip = video_stem(record.text("video"))
                if clip in paragraphs:
                    raise record.error(f"{clip} has a paragraph already")
                paragraphs[clip] = [record.text("text").rstrip(", ")]
        yield from (Item(split, f"{split} {clip}", clip, ", ".join(texts)) for clip, texts in paragraphs.items())


def video_stem(name: str) -> str:
    """Return the name of a file without the ending of a video, of which some have an empty one ("name.")."""
    path = PurePosixPath(name)
    return name.removesuffix(path.suffix) if path.suffix.lower() in VIDEO_ENDINGS else name.rstrip(".")


# HMDB51 and Kinetics-400


def read_hmdb51(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read one of the three official splits: a file per class, 1 for train and 2 for test."""
    ending, found = f"_test_split{config.fold}.txt", False
    for name in sorted(annotations.names()):
        if not name.endswith(ending):
            continue
        found, label = True, name.removesuffix(ending)
        for number, line in enumerate(annotations.lines(name)):
            file, _, use = line.rpartition(" ")
            if not file or use not in ("0", "1", "2"):
                raise ManifestError(f"{name}, record {number}: {line!r} is not `FILE.avi 0|1|2`")
            if use != "0":
                clip = video_stem(file.strip())
                split = "test" if use == "2" else "val" if in_val(clip, config.val_share) else "train"
                yield Item(split, clip, clip, "", label, file=f"{label}/{file.strip()}")
    if not found:
        raise ManifestError(f"{annotations.uri} has no files CLASS{ending}; name the folder of the split files")


def read_kinetics(annotations: Annotations, config: ItemsConfig) -> Iterator[Item]:
    """Read Kinetics-400. Its official test split has no labels: `val` is tested on, a part of train is set aside."""
    for split, name in _splits(annotations, {"train": ("kinetics*train.csv",), "test": ("kinetics*val.csv",)}):
        for row in annotations.table(name, ("label", "youtube_id", "time_start", "time_end")):
            start, end = row.whole_number("time_start", 0), row.whole_number("time_end", 0)
            video, label = row.text("youtube_id"), row.text("label")
            clip = f"{video}_{start:06d}_{end:06d}"
            is_val = split == "train" and in_val(clip, config.val_share)
            yield Item("val" if is_val else split, clip, clip, "", label, file=f"{label}/{clip}.mp4", video=video)


MSRVTT_RETRIEVAL = Layout("retrieval", read_msrvtt_retrieval)
MSRVTT_QA = Layout("answer", read_msrvtt_qa, ("*ans2label.json",))
MSRVTT_MC = Layout("choice", read_msrvtt_choice)
MSVD_QA = Layout("answer", read_msvd_qa, ("answer_set.txt", "*ans2label.json"))
TGIF_ACTION = Layout("choice", _tgif_choice("action"))
TGIF_TRANSITION = Layout("choice", _tgif_choice("transition"))
TGIF_FRAME = Layout("answer", read_tgif_frame, ("frameqa*ans2label.json",))
DIDEMO_RETRIEVAL = Layout("retrieval", read_didemo)
HMDB51 = Layout("label", read_hmdb51)
KINETICS_400 = Layout("label", read_kinetics, ("label_map*.txt", "kinetics*labels.csv"))
