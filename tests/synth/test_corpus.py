"""The embedded corpus: equal bytes for equal seeds, held-out combinations held out, captions true of the pixels."""

import csv
import hashlib
import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from evilm.config.data import CorpusConfig
from evilm.synth import (
    PlannedClip,
    clip_frames,
    manifest_csv,
    plan_corpus,
    render_and_write,
    render_clip,
    write_manifests,
)
from evilm.synth import words as names
from evilm.synth.grammar import MAX_WORDS, MIN_WORDS, caption_vocabulary, participle, third_person
from evilm.synth.render import PAINTS, frame_times, pose_object
from evilm.synth.world import STEPS, ObjectSpec, heldout_triples

CONFIG = CorpusConfig()
DIGEST = "2ec42dda1e2302ac"
"""Of the manifest of the default corpus. Another word in a caption changes every figure that README gives."""
SMALL = CorpusConfig(train_clips=6, val_clips=2, test_clips=4)


@pytest.fixture(scope="module")
def plan() -> list[PlannedClip]:
    return plan_corpus(CONFIG)


def test_the_captions_are_those_of_the_published_figures(plan: list[PlannedClip]) -> None:
    assert hashlib.sha256(manifest_csv(plan, CONFIG).encode()).hexdigest().startswith(DIGEST)


def drawn_mask(clip: PlannedClip) -> np.ndarray:
    """Where objects were drawn, by the pixels alone: the difference from the same scene without objects."""
    bare = replace(clip, scene=replace(clip.scene, objects=()))
    difference = clip_frames(clip, CONFIG).astype(int) - clip_frames(bare, CONFIG)
    return np.abs(difference).sum(-1) > 40


def only(clip: PlannedClip, index: int) -> PlannedClip:
    """The clip with one of its objects, in normal light."""
    return replace(clip, scene=replace(clip.scene, objects=(clip.scene.objects[index],), event=""))


def centres(clip: PlannedClip, index: int = 0) -> np.ndarray:
    """Centre (x, y) in pixels of one object in each frame."""
    mask = drawn_mask(only(clip, index))
    rows, cols = np.mgrid[: mask.shape[1], : mask.shape[2]]
    area = np.maximum(mask.sum((1, 2)), 1)
    return np.stack([(mask * cols).sum((1, 2)) / area, (mask * rows).sum((1, 2)) / area], axis=1)


def some(plan: list[PlannedClip], wanted: Callable[[PlannedClip], bool], num: int = 4) -> list[PlannedClip]:
    found = [clip for clip in plan if wanted(clip)][:num]
    assert found
    return found


def test_plan_counts_splits_and_ids(plan: list[PlannedClip]) -> None:
    assert Counter(clip.split for clip in plan) == {"train": 2000, "val": 160, "test": 240}
    assert len({clip.videoid for clip in plan}) == len(plan)
    assert all(clip.videoid.isdigit() and len(clip.videoid) == 10 for clip in plan)
    assert max(Counter(clip.page_dir for clip in plan).values()) == 50
    assert {18, 30} <= {clip.num_frames for clip in plan} <= set(range(18, 31))


def test_plan_is_pure_and_a_smaller_corpus_is_part_of_it(plan: list[PlannedClip]) -> None:
    assert plan_corpus(CONFIG) == plan
    assert set(plan_corpus(SMALL)) <= set(plan)


def test_another_seed_or_size_gives_other_ids(plan: list[PlannedClip]) -> None:
    ids = {clip.videoid for clip in plan}
    for other in (CorpusConfig(seed=1), CorpusConfig(width_px=192), CorpusConfig(heldout_ratio=0.25)):
        assert not ids & {clip.videoid for clip in plan_corpus(other)}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heldout_combinations_are_never_in_train_or_val(seed: int) -> None:
    planned = plan_corpus(CorpusConfig(seed=seed))
    banned = set(heldout_triples(seed))
    assert len(banned) == 180  # a tenth of 10 colours x 10 shapes x 18 motions
    seen = set().union(*(clip.scene.triples for clip in planned if clip.split != "test"))
    assert not seen & banned
    test = [clip for clip in planned if clip.split == "test"]
    assert sum(clip.heldout for clip in test) == 120
    for clip in test:
        assert (clip.scene.objects[0].triple in banned) == clip.heldout
        seconds = {item.triple for item in clip.scene.objects} - {clip.scene.objects[0].triple}
        assert not seconds & banned
    # Each colour, shape and motion of a held-out combination was met in training, only not together.
    for k in range(3):
        assert {triple[k] for triple in banned} <= {triple[k] for triple in seen}


@pytest.mark.parametrize(("ratio", "num"), [(0.0, 0), (0.25, 60), (1.0, 240)])
def test_heldout_ratio_is_met(ratio: float, num: int) -> None:
    config = CorpusConfig(train_clips=1, val_clips=0, heldout_ratio=ratio)
    assert sum(clip.heldout for clip in plan_corpus(config)) == num


def test_captions(plan: list[PlannedClip]) -> None:
    captions = [clip.caption for clip in plan]
    assert 150 <= len(caption_vocabulary(captions)) <= 320
    lengths = [len(caption.split()) for caption in captions]
    assert min(lengths) >= MIN_WORDS
    assert max(lengths) <= MAX_WORDS
    tests = [clip.caption.lower() for clip in plan if clip.split == "test"]
    assert len(set(tests)) == len(tests)


def test_captions_name_every_colour_and_shape(plan: list[PlannedClip]) -> None:
    for clip in plan:
        said = clip.caption.lower()
        for item in clip.scene.objects:
            assert any(name in said for name in names.COLOURS[item.colour]), clip
            assert any(one in said or many in said for one, many in names.SHAPES[item.shape]), clip


def told(clip: PlannedClip) -> tuple[str, list[ObjectSpec]]:
    """The caption without its words about scene and light, and the objects in the order in which it names them."""
    said = clip.caption.lower()
    for phrase in (*names.SCENES[clip.scene.background], *names.EVENTS.get(clip.scene.event, ())):
        said = said.replace(phrase, "")

    def place(item: ObjectSpec) -> int:
        found = re.search("|".join(rf"\b{name}\b" for name in names.COLOURS[item.colour]), said)
        assert found, clip
        return found.start()

    return said, sorted(clip.scene.objects, key=place)


def test_direction_words_are_true_of_the_pixels(plan: list[PlannedClip]) -> None:
    wanted = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "rise": (1, -1), "climb": (1, -1), "down": (1, 1),
              "fall": (1, 1), "sink": (1, 1), "drop": (1, 1)}  # fmt: skip
    checked: Counter[str] = Counter()
    for clip in plan:
        said = told(clip)[0].replace("from right to left", "left").replace("from left to right", "right")
        for word, (axis, sign) in wanted.items():
            moves = clip.scene.layout == "solo" and clip.scene.objects[0].motion not in ("bounce", "orbit")
            if moves and checked[word] < 6 and re.search(rf"\b{word}", said):
                checked[word] += 1
                path = centres(clip)
                assert (path[-2] - path[1])[axis] * sign > 0.12 * 144, clip
    assert all(checked[word] == 6 for word in wanted)


def test_place_words_are_true_of_the_scene(plan: list[PlannedClip]) -> None:
    """Said first in "a red star left of a blue ring": the star, and it is on the left. Swapped, the words would lie."""
    places = [
        (r"left (of|side of)", 0, -1),
        (r"right (of|side of)", 0, 1),
        (r"(above|over) an?\b", 1, -1),
        (r"(below|under) an?\b", 1, 1),
        (r"(above it|at the top)", 1, 1),
        (r"(below it|at the bottom)", 1, -1),
        (r"on (the|its) right\b(?! side)", 0, -1),
        (r"on (the|its) left\b(?! side)", 0, 1),
    ]
    checked: Counter[str] = Counter()
    for clip in some(plan, lambda clip: clip.scene.layout == "beside", 400):
        said, (first, second) = told(clip)
        for words, axis, sign in places:
            if re.search(words, said):
                checked[words] += 1
                assert (first.start[axis] - second.start[axis]) * sign > 0.3, (clip, words)
    assert sum(checked.values()) == 400
    assert min(checked.values()) > 5


def test_who_follows_is_said_in_order(plan: list[PlannedClip]) -> None:
    for clip in some(plan, lambda clip: clip.scene.layout == "follow", 60):
        said, (first, second) = told(clip)
        step = STEPS[first.motion]
        ahead = sum((first.start[k] - second.start[k]) * step[k] for k in (0, 1))
        assert (ahead > 0) == (" by a" in said), clip


def test_nothing_is_camouflaged(plan: list[PlannedClip]) -> None:
    for clip in plan:
        assert not {item.colour for item in clip.scene.objects} & set(names.CAMOUFLAGE[clip.scene.background])


@pytest.mark.parametrize(
    ("verb", "third", "ing"),
    [("move", "moves", "moving"), ("spin", "spins", "spinning"), ("flash", "flashes", "flashing"),
     ("go", "goes", "going"), ("stay", "stays", "staying"), ("get", "gets", "getting"), ("pass", "passes", "passing")],
)  # fmt: skip
def test_verbs_are_conjugated(verb: str, third: str, ing: str) -> None:
    assert (third_person(verb), participle(verb)) == (third, ing)


def test_same_bytes_in_any_order_and_process() -> None:
    planned = plan_corpus(SMALL)
    first = {clip.videoid: render_clip(clip, SMALL) for clip in planned}
    assert {clip.videoid: render_clip(clip, SMALL) for clip in reversed(planned)} == first
    code = (
        "import hashlib, sys\nfrom evilm.config.data import CorpusConfig\nfrom evilm.synth import *\n"
        "config = CorpusConfig(train_clips=6, val_clips=2, test_clips=4)\nclip = plan_corpus(config)[3]\n"
        "print(hashlib.sha256(manifest_csv(plan_corpus(config), config).encode() + render_clip(clip, config))"
        ".hexdigest())\nassert not {'torch', 'ray', 'mlflow'} & set(sys.modules)\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_files_are_h264_of_the_planned_size_and_length(plan: list[PlannedClip]) -> None:
    for clip in plan[:6]:
        with av.open(io.BytesIO(render_clip(clip, CONFIG))) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", 12)
        assert np.stack(frames).shape == (clip.num_frames, 144, 176, 3)
        error = np.abs(np.stack(frames).astype(int) - clip_frames(clip, CONFIG))
        assert error.mean() < 12  # chroma at half size costs the most on stripes and checkers


def test_every_object_stays_in_the_central_square(plan: list[PlannedClip]) -> None:
    for clip in plan[::3]:
        for item in clip.scene.objects:
            pose = pose_object(item, clip.scene.layout, frame_times(clip.num_frames))
            reach = 0.8 * item.radius * pose.scale  # tips of stars and the like may touch the border
            assert (np.abs(pose.x) + reach).max() <= 0.5, clip
            assert (np.abs(pose.y) + reach).max() <= 0.5, clip


@pytest.mark.parametrize("motion", list(STEPS))
def test_what_moves_goes_where_the_caption_says(plan: list[PlannedClip], motion: str) -> None:
    for clip in some(plan, lambda clip: clip.scene.objects[0].motion == motion):
        path = centres(clip)
        way = (path[-2] - path[1]) / 144
        for axis in (0, 1):
            if STEPS[motion][axis]:
                assert way[axis] * STEPS[motion][axis] > 0.12, clip
            else:
                assert abs(way[axis]) < 0.02, clip


@pytest.mark.parametrize("motion", ["still", "spin", "grow", "shrink", "blink", "appear", "vanish"])
def test_what_stays_stays(plan: list[PlannedClip], motion: str) -> None:
    for clip in some(plan, lambda clip: clip.scene.objects[0].motion == motion and clip.scene.layout == "solo"):
        seen = drawn_mask(only(clip, 0)).sum((1, 2)) > 60
        assert np.ptp(centres(clip)[seen], axis=0).max() < 12, clip


def test_sizes_over_time(plan: list[PlannedClip]) -> None:
    def areas(motion: str) -> list[np.ndarray]:
        chosen = some(plan, lambda clip: clip.scene.objects[0].motion == motion and clip.scene.layout == "solo")
        return [drawn_mask(only(clip, 0)).sum((1, 2)) for clip in chosen]

    assert all(area[-1] > 4 * area[0] for area in areas("grow"))
    assert all(area[0] > 4 * area[-1] for area in areas("shrink"))
    assert all(area[0] == 0 < area[-1] for area in areas("appear"))
    assert all(area[-1] == 0 < area[0] for area in areas("vanish"))
    for area in areas("blink"):
        seen = area[(len(area) * np.array([1, 3, 5, 7]) / 8).astype(int)] > 0
        assert (seen[:-1] != seen[1:]).all()  # four sparse frames see it come and go


def test_places(plan: list[PlannedClip]) -> None:
    for relation, (axis, sign) in {"left_of": (0, 1), "right_of": (0, -1), "above": (1, 1), "below": (1, -1)}.items():
        for clip in some(plan, lambda clip, relation=relation: clip.scene.relation == relation):
            times = frame_times(clip.num_frames)
            main, other = (pose_object(item, clip.scene.layout, times) for item in clip.scene.objects)
            gap = (other.x - main.x, other.y - main.y)[axis] * sign
            assert gap.min() > 0.3, clip


def test_meetings(plan: list[PlannedClip]) -> None:
    for layout in ("pass", "toward", "away", "follow"):
        for clip in some(plan, lambda clip, layout=layout: clip.scene.layout == layout, 12):
            times = frame_times(clip.num_frames)
            main, other = (pose_object(item, layout, times) for item in clip.scene.objects)
            step = np.array(STEPS[clip.scene.objects[0].motion])
            ahead = (other.x - main.x) * step[0] + (other.y - main.y) * step[1]
            if layout == "pass":
                assert ahead[0] > 0.2 and ahead[-1] < -0.2  # noqa: PT018
            elif layout == "toward":
                assert (ahead > 0).all() and ahead[0] > ahead[-1] + 0.15  # noqa: PT018
            elif layout == "away":
                assert (ahead < 0).all() and ahead[-1] < ahead[0] - 0.15  # noqa: PT018
            else:
                assert ahead.min() > 0.2 and np.ptp(ahead) < 1e-9  # noqa: PT018


def test_light(plan: list[PlannedClip]) -> None:
    for event, sign in (("brighter", 1), ("darker", -1)):
        for clip in some(plan, lambda clip, event=event: clip.scene.event == event):
            light = clip_frames(clip, CONFIG).mean((1, 2, 3))
            assert sign * (light[-1] - light[0]) > 0.25 * light.max()


@pytest.mark.parametrize("colour", list(PAINTS))
def test_colours_survive_the_codec(plan: list[PlannedClip], colour: str) -> None:
    paints = np.array(list(PAINTS.values()))

    def plain(clip: PlannedClip) -> bool:
        main = clip.scene.objects[0]
        looks = (main.colour, main.texture, clip.scene.event, clip.scene.layout)
        return looks == (colour, "plain", "", "solo") and main.motion in STEPS

    for clip in some(plan, plain):
        with av.open(io.BytesIO(render_clip(clip, CONFIG))) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        pixels = np.median(frames[drawn_mask(clip)], axis=0)
        assert list(PAINTS)[int(np.abs(paints - pixels).sum(1).argmin())] == colour, clip


def test_manifest(tmp_path: Path) -> None:
    planned = plan_corpus(SMALL)
    place = write_manifests(planned, SMALL, str(tmp_path))
    assert Path(place).read_text() == manifest_csv(planned, SMALL)
    rows = list(csv.DictReader(io.StringIO(manifest_csv(planned, SMALL))))
    assert [row["videoid"] for row in rows] == [clip.videoid for clip in planned]
    assert list(rows[0])[:5] == ["videoid", "contentUrl", "duration", "page_dir", "name"]
    assert {row["duration"] for row in rows} == {"PT00H00M02S"}
    assert [row["heldout"] for row in rows if row["split"] == "test"] == ["0", "1", "0", "1"]


def test_rendering_again_writes_only_what_is_missing(tmp_path: Path) -> None:
    planned, root = plan_corpus(SMALL), tmp_path / "corpus"
    assert render_and_write(planned, SMALL, str(root)) == 12
    files = {path: path.read_bytes() for path in (root / "videos").rglob("*") if path.is_file()}
    assert sorted(files) == sorted(root / "videos" / clip.path for clip in planned)  # no temporary files left
    lost = root / "videos" / planned[5].path
    lost.unlink()
    assert render_and_write(planned[4:], SMALL, str(root)) == 1
    assert {path: path.read_bytes() for path in files} == files
    assert render_and_write(planned, SMALL, str(root)) == 0
