"""The plan of the embedded corpus: equal for equal seeds, held-out combinations held out, its manifest."""

import csv
import hashlib
import io
from collections import Counter
from pathlib import Path

import pytest

from evilm.config.data import CorpusConfig
from evilm.synth import (
    PlannedClip,
    manifest_csv,
    plan_corpus,
    write_manifests,
)
from evilm.synth.world import heldout_triples
from helpers.synth_clips import CONFIG, SMALL

DIGEST = "2ec42dda1e2302ac"
"""Of the manifest of the default corpus. Another word in a caption changes every figure that README gives."""


def test_default_corpus_is_the_one_of_the_published_figures(plan: list[PlannedClip]) -> None:
    assert hashlib.sha256(manifest_csv(plan, CONFIG).encode()).hexdigest().startswith(DIGEST)


def test_plan_counts_splits_and_ids(plan: list[PlannedClip]) -> None:
    assert Counter(clip.split for clip in plan) == {"train": 2000, "val": 160, "test": 240}
    assert len({clip.videoid for clip in plan}) == len(plan)
    assert all(clip.videoid.isdigit() and len(clip.videoid) == 10 for clip in plan)
    assert max(Counter(clip.page_dir for clip in plan).values()) == 50
    assert {18, 30} <= {clip.num_frames for clip in plan} <= set(range(18, 31))


def test_plan_is_repeatable_and_contains_smaller_plans(plan: list[PlannedClip]) -> None:
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


def test_manifest_lists_the_planned_clips(tmp_path: Path) -> None:
    planned = plan_corpus(SMALL)
    place = write_manifests(planned, SMALL, str(tmp_path))
    assert Path(place).read_text() == manifest_csv(planned, SMALL)
    rows = list(csv.DictReader(io.StringIO(manifest_csv(planned, SMALL))))
    assert [row["videoid"] for row in rows] == [clip.videoid for clip in planned]
    assert list(rows[0])[:5] == ["videoid", "contentUrl", "duration", "page_dir", "name"]
    assert {row["duration"] for row in rows} == {"PT00H00M02S"}
    assert [row["heldout"] for row in rows if row["split"] == "test"] == ["0", "1", "0", "1"]
