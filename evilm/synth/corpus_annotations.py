"""Write annotations of the embedded corpus in the layouts of downstream data sets, true by the plan of each scene.

Clips keep their ids. Kinetics-400's layout adds a span to each (`ID_000000_000010`), which its reader does without.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from evilm.io import storage
from evilm.items.annotation_files import EMBEDDED_MARK
from evilm.seeds import named_rng
from evilm.synth.corpus_plan import PlannedClip
from evilm.synth.grammar import write_caption
from evilm.synth.words import COLOURS, COUNTS, MOTIONS, SCENES, SHAPES
from evilm.synth.world import Scene

FOLDER = "annotations"
_MARK = "The layout of a data set with videos of the embedded corpus: scores can't be compared with published ones.\n"
_NUM_OPTIONS = 5
_CAPTIONS = 20
_SENTENCES = 5
_LIGHT = {"brighter": "get brighter", "darker": "get darker", "": "stay the same"}
_OTHER_LIGHT = ("turn red", "blink")
_STEADY_SHARE = 1 / 8
"""Of the clips whose light stays the same, the share asked for it: then no answer is right much more often."""
_OFFICIAL_SPLITS = {"train": "train", "val": "validate", "test": "test"}


class Question(NamedTuple):
    """A question about a clip with a one-word answer."""

    text: str
    answer: str
    type: str


def ask(scene: Scene) -> list[Question]:
    """Return the questions with exactly one answer in a scene."""
    main, found = scene.objects[0], []
    shape, colour = SHAPES[main.shape][0][0], COLOURS[main.colour][0]
    others = scene.objects[1:] if scene.layout != "group" else ()
    alone = not any(item.shape == main.shape for item in others)
    if alone and scene.layout != "group":
        found.append(Question(f"what color is the {shape}?", colour, "color"))
        found.append(Question(f"how does the {shape} move?", main.motion, "how"))
    if not any(item.colour == main.colour for item in others):
        found.append(Question(f"what shape is {colour}?", shape, "object"))
    same = sum(item.shape == main.shape for item in scene.objects)
    plural = SHAPES[main.shape][0][1]
    found.append(Question(f"how many {plural} are there?", "one" if same == 1 else COUNTS[same][0], "number"))
    found.append(Question("where does it happen?", scene.background, "location"))
    return found


def write_annotations(planned: Sequence[PlannedClip], seed: int, root: str) -> None:
    """Write all layouts below `<root>/annotations`, a folder for each task."""
    for task, write in _LAYOUTS.items():
        for name, data in ((EMBEDDED_MARK, _MARK), *write(planned, seed)):
            storage.write_bytes(storage.join(root, FOLDER, task, name), data.encode())


def _by_split(planned: Sequence[PlannedClip]) -> dict[str, list[PlannedClip]]:
    found = defaultdict[str, list[PlannedClip]](list)
    for clip in planned:
        found[clip.split].append(clip)
    return found


def _msvd_qa(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    yield "youtube_mapping.txt", "".join(f"{clip.videoid} vid{k}\n" for k, clip in enumerate(planned, start=1))
    numbers, count = {clip.videoid: k for k, clip in enumerate(planned, start=1)}, 0
    for split, clips in _by_split(planned).items():
        rows = []
        for clip in clips:
            for question in ask(clip.scene):
                video = numbers[clip.videoid]
                rows.append({"answer": question.answer, "id": count, "question": question.text, "video_id": video})
                count += 1
        yield f"{split}_qa.json", json.dumps(rows)


def _msrvtt_qa(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    for split, clips in _by_split(planned).items():
        rows = (
            {"answer": q.answer, "question": q.text, "video_id": clip.videoid, "answer_type": q.type}
            for clip in clips
            for q in ask(clip.scene)
        )
        yield f"msrvtt_qa_{split}.jsonl", _lines(rows)


def _msrvtt_choice(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    """Offer the caption of a clip among four of scenes with another main object and another background."""
    rows, clips = [], _by_split(planned)["test"]
    for number, clip in enumerate(clips):
        rng, main = named_rng("choice", seed, clip.videoid), clip.scene.objects[0]
        wrong: list[str] = []
        for place in rng.permutation(len(clips)):
            other = clips[int(place)]
            differs = other.scene.objects[0].triple != main.triple and other.scene.background != clip.scene.background
            if differs and other.caption not in (*wrong, clip.caption) and len(wrong) < _NUM_OPTIONS - 1:
                wrong.append(other.caption)
        if len(wrong) == _NUM_OPTIONS - 1:
            right = int(rng.integers(_NUM_OPTIONS))
            options = [*wrong[:right], clip.caption, *wrong[right:]]
            row = {"qid": f"mc{number}", "clip_name": clip.videoid, "title": f"msr{number}"}
            rows.append(row | {"answer": str(right), "options": options})
    yield "msrvtt_mc_test.jsonl", _lines(rows)


def _msrvtt_retrieval(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    """Write official records: 20 captions per video, the 1k-A list of half of the test videos, both training lists.

    As in the official lists, the 9k list has the test videos that are not in 1k-A.
    """
    parts = _by_split(planned)
    for file, splits in (("train_val_videodatainfo.json", ("train", "val")), ("test_videodatainfo.json", ("test",))):
        videos, sentences = [], []
        for number, clip in enumerate(clip for split in splits for clip in parts[split]):
            videos.append({"video_id": clip.videoid, "id": number, "category": 0, "url": f"evilm://corpus/{clip.videoid}",
                           "start time": 0.0, "end time": 1.0, "split": _OFFICIAL_SPLITS[clip.split]})  # fmt: skip
            first = _CAPTIONS * (number + len(planned) * (file != "train_val_videodatainfo.json"))
            texts = _captions(clip, seed, _CAPTIONS)
            sentences += [
                {"video_id": clip.videoid, "sen_id": first + k, "caption": text} for k, text in enumerate(texts)
            ]
        yield file, json.dumps({"info": {"description": "embedded corpus"}, "videos": videos, "sentences": sentences})
    tested = parts["test"][: min(1000, (len(parts["test"]) + 1) // 2)]
    rows = [(f"ret{k}", f"msr{k}", clip.videoid, _captions(clip, seed, 1)[0]) for k, clip in enumerate(tested)]
    yield "MSRVTT_JSFUSION_test.csv", _table(("key", "vid_key", "video_id", "sentence"), rows)
    seven = [(clip.videoid,) for clip in planned if clip.split != "test"]
    yield "MSRVTT_train.7k.csv", _table(("video_id",), seven)
    nine = [*seven, *((clip.videoid,) for clip in parts["test"][len(tested) :])]
    yield "MSRVTT_train.9k.csv", _table(("video_id",), nine)


def _tgif(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    """Write tab-separated files like the official ones, without clips of val, which is a part of the training file."""
    frame = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")
    choice = ("gif_name", "question", *(f"a{k}" for k in range(1, 6)), "answer", "vid_id", "key")
    types = {"object": 0, "number": 1, "color": 2, "location": 3}
    for split, title in (("train", "Train"), ("test", "Test")):
        rows: dict[str, list[tuple[Any, ...]]] = {"frameqa": [], "action": [], "transition": []}
        for key, clip in enumerate(_by_split(planned)[split]):
            asked = [q for q in ask(clip.scene) if q.type in types]
            for k, q in enumerate(asked):
                name = f"FRAMEQA{split}{key}_{k}"
                rows["frameqa"].append((clip.videoid, q.text, q.answer, types[q.type], name, key, clip.caption))
            rng, main = named_rng("tgif", seed, clip.videoid), clip.scene.objects[0]
            motion, name = main.motion, f"{COLOURS[main.colour][0]} {SHAPES[main.shape][0][0]}"
            light = _LIGHT[clip.scene.event]
            for task, question, right, wrong in (
                ("action", f"What does the {name} do ?", motion, [m for m in MOTIONS if m != motion]),
                ("transition", "What does the light do in the end ?", light,
                 [*(v for v in _LIGHT.values() if v != light), *_OTHER_LIGHT]),
            ):  # fmt: skip
                options = [wrong[int(k)] for k in rng.permutation(len(wrong))[: _NUM_OPTIONS - 1]]
                place = int(rng.integers(_NUM_OPTIONS))
                options.insert(place, right)
                if task == "transition" and not clip.scene.event and rng.random() >= _STEADY_SHARE:
                    continue
                rows[task].append((clip.videoid, question, *options, place, f"{task.upper()}{split}{key}", key))
        for task, found in rows.items():
            header = frame if task == "frameqa" else choice
            yield f"{title}_{task}_question.csv", _tabs(header, found)


def _didemo(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    """Write five descriptions per video, each a record; records of one video are not adjacent."""
    for split, clips in _by_split(planned).items():
        rows = []
        for k in range(_SENTENCES):
            for number, clip in enumerate(clips):
                text = _captions(clip, seed, _SENTENCES)[k]
                rows.append({"num_segments": 6, "description": text, "dl_link": "", "times": [[0, 0]] * 4,
                             "video": f"{clip.videoid}.mp4", "annotation_id": _SENTENCES * number + k})  # fmt: skip
        yield f"{split}_data.json", json.dumps(rows)


def _hmdb51(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    """Use the motion of the main object as class; the three folds leave other clips of train unused."""
    for fold in (1, 2, 3):
        files = defaultdict[str, list[str]](list)
        for number, clip in enumerate(clip for clip in planned if clip.split != "val"):
            use = 2 if clip.split == "test" else 0 if number % 10 == fold else 1
            files[clip.scene.objects[0].motion].append(f"{clip.videoid}.avi {use} \n")
        yield from ((f"{label}_test_split{fold}.txt", "".join(lines)) for label, lines in sorted(files.items()))


def _kinetics(planned: Sequence[PlannedClip], seed: int) -> Iterator[tuple[str, str]]:
    """Use the background as class."""
    header = ("label", "youtube_id", "time_start", "time_end", "split", "is_cc")
    for split, name in (("train", "train"), ("test", "val")):
        rows = [(clip.scene.background, clip.videoid, 0, 10, name, 0) for clip in _by_split(planned)[split]]
        yield f"kinetics-400_{name}.csv", _table(header, rows)
    yield "label_map_k400.txt", "".join(f"{label}\n" for label in sorted(SCENES))


def _captions(clip: PlannedClip, seed: int, count: int) -> list[str]:
    """Write `count` captions of a clip, its own first."""
    rng = named_rng("captions", seed, clip.videoid)
    return [clip.caption, *(write_caption(clip.scene, rng) for _ in range(count - 1))]


def _lines(rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([header, *rows])
    return sink.getvalue()


def _tabs(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "".join("\t".join(map(str, row)) + "\r\n" for row in (header, *rows))


_LAYOUTS: dict[str, Callable[[Sequence[PlannedClip], int], Iterator[tuple[str, str]]]] = {
    "msrvtt-retrieval": _msrvtt_retrieval,
    "msrvtt-qa": _msrvtt_qa,
    "msrvtt-mc": _msrvtt_choice,
    "msvd-qa": _msvd_qa,
    "tgif-qa": _tgif,
    "didemo-retrieval": _didemo,
    "hmdb51": _hmdb51,
    "kinetics-400": _kinetics,
}
