"""Items that fine-tuning and benchmark build themselves: errors give advice only where it helps."""

import json
from pathlib import Path

import pytest

from evilm.config.stages import Benchmark
from evilm.errors import ConfigError
from evilm.tasks.task_inputs import find_items
from helpers.random_model import named_frames


def test_overwriting_is_advised_only_where_it_helps(tmp_path: Path) -> None:
    rows = [{"answer": "cat", "id": n, "question": "what is shown?", "video_id": n} for n in range(4)]
    for split, part in (("train", rows[:2]), ("test", rows[2:])):
        (tmp_path / f"{split}_qa.json").write_text(json.dumps(part))
    settings = {"task": "msrvtt-qa", "root": str(tmp_path), "annotations": str(tmp_path)}
    config = Benchmark.model_validate(settings | {"tracking": {"enabled": False}})
    some, every = (named_frames(tmp_path / f"{n}", [f"video{k}" for k in range(n)]) for n in (3, 4))
    with pytest.raises(ConfigError, match=r"build_items, to build .*: .* 1 of 2 videos have no frames .* share$"):
        find_items(config, some)
    config = config.override({"root": str(tmp_path / "other")})
    assert find_items(config, every).splits["test"].num_items == 2
    changed = config.override({"items.num_answers": 5})
    with pytest.raises(
        ConfigError, match=r"other settings .*\(to overwrite its output, run pipelines/build_items.py\)$"
    ):
        find_items(changed, every)
