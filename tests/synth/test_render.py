"""Rendered clips: equal bytes for equal plans, and motion, size and light as planned."""

import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from evilm.synth import (
    PlannedClip,
    clip_frames,
    plan_corpus,
    render_and_write,
    render_clip,
)
from evilm.synth.render import PAINTS, frame_times, pose_object
from evilm.synth.world import STEPS
from helpers.synth_clips import CONFIG, SMALL, centres, drawn_mask, only, some


def test_rendering_repeats_in_any_order_and_process() -> None:
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
def test_motion_follows_the_plan(plan: list[PlannedClip], motion: str) -> None:
    for clip in some(plan, lambda clip: clip.scene.objects[0].motion == motion):
        path = centres(clip)
        way = (path[-2] - path[1]) / 144
        for axis in (0, 1):
            if STEPS[motion][axis]:
                assert way[axis] * STEPS[motion][axis] > 0.12, clip
            else:
                assert abs(way[axis]) < 0.02, clip


@pytest.mark.parametrize("motion", ["still", "spin", "grow", "shrink", "blink", "appear", "vanish"])
def test_still_objects_stay_in_place(plan: list[PlannedClip], motion: str) -> None:
    for clip in some(plan, lambda clip: clip.scene.objects[0].motion == motion and clip.scene.layout == "solo"):
        seen = drawn_mask(only(clip, 0)).sum((1, 2)) > 60
        assert np.ptp(centres(clip)[seen], axis=0).max() < 12, clip


def test_objects_grow_shrink_appear_and_vanish(plan: list[PlannedClip]) -> None:
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


def test_placed_objects_keep_their_relation(plan: list[PlannedClip]) -> None:
    for relation, (axis, sign) in {"left_of": (0, 1), "right_of": (0, -1), "above": (1, 1), "below": (1, -1)}.items():
        for clip in some(plan, lambda clip, relation=relation: clip.scene.relation == relation):
            times = frame_times(clip.num_frames)
            main, other = (pose_object(item, clip.scene.layout, times) for item in clip.scene.objects)
            gap = (other.x - main.x, other.y - main.y)[axis] * sign
            assert gap.min() > 0.3, clip


def test_objects_pass_approach_part_and_follow(plan: list[PlannedClip]) -> None:
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


def test_scenes_brighten_and_darken(plan: list[PlannedClip]) -> None:
    for event, sign in (("brighter", 1), ("darker", -1)):
        for clip in some(plan, lambda clip, event=event: clip.scene.event == event):
            light = clip_frames(clip, CONFIG).mean((1, 2, 3))
            assert sign * (light[-1] - light[0]) > 0.25 * light.max()


@pytest.mark.parametrize("colour", list(PAINTS))
def test_colours_survive_the_codec(plan: list[PlannedClip], colour: str) -> None:
    paints = np.array(list(PAINTS.values()))

    def plain(clip: PlannedClip) -> bool:
        main = clip.scene.objects[0]
        properties = (main.colour, main.texture, clip.scene.event, clip.scene.layout)
        return properties == (colour, "plain", "", "solo") and main.motion in STEPS

    for clip in some(plan, plain):
        with av.open(io.BytesIO(render_clip(clip, CONFIG))) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        pixels = np.median(frames[drawn_mask(clip)], axis=0)
        assert list(PAINTS)[int(np.abs(paints - pixels).sum(1).argmin())] == colour, clip


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
