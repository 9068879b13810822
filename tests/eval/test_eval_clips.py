"""Scoring a model that takes fewer frames than are stored: one from the middle of each group, with its own codes."""

from pathlib import Path

import numpy as np

from evilm.config.training import ObjectivesConfig
from evilm.eval.eval_clips import choose_clips, make_blocks, open_shards
from evilm.eval.scoring import ScoreJob, Scorer
from evilm.shards import CodesManifest
from helpers.random_model import FRAMES, NUM_CODES, PX, make_codes, make_frames, make_model


def test_codes_are_taken_of_the_frames_that_are_scored(tmp_path: Path) -> None:
    frames = make_frames(tmp_path / "frames")
    stored = make_codes(tmp_path / "codes", frames)
    make_model(tmp_path / "model", num_frames=1)
    pairs = open_shards(frames, "test", CodesManifest.load(f"{tmp_path}/codes/t0"))
    clips = choose_clips(pairs, 100, 0)
    blocks = make_blocks(pairs, clips, 8)
    captions = [clip.caption for clip in clips]
    job = ScoreJob(
        str(tmp_path / "model"), blocks, captions, list(range(len(clips))), ObjectivesConfig(mask_ratio=0.9), 0
    )
    scored = Scorer(job)({"block": np.array([0])})
    regions = (PX // 32) ** 2
    assert scored["predicted"].shape == (len(blocks[0].rows), regions - 1)
    assert scored["predicted"].max() < NUM_CODES
    of_first_frame = stored.reshape(-1, FRAMES, regions)[:, 0]
    for truth, row in zip(scored["code_ids"], blocks[0].rows, strict=True):
        assert sorted(truth) in [sorted(np.delete(of_first_frame[row], seen)) for seen in range(regions)]
