"""Two runs on one output folder: whatever is stopped when, what is published is one run's, and complete."""

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evilm.ingest import shard_writer
from evilm.ingest.shard_videos import shard_videos
from evilm.shards import FrameManifest
from helpers.small_corpus import in_this_process, make_clips, shard_config
from helpers.two_drivers import finish, start

pytestmark = pytest.mark.faults
_SMALL = {"sampling.shard_clips": 2, "sampling.row_group_clips": 2, "tracking.enabled": False}
_GROWN, _OTHER = {"manifest": "grown.csv"}, {"sampling.frame_px": 32, "overwrite": True}
"""Settings of the second run: more rows; or others, which delete the output."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips; the first five are in `clips.csv`, all in `grown.csv`."""
    return make_clips(tmp_path_factory.mktemp("corpus"), 8, clips=5, grown=8)


def settings(corpus: Path, out: str, values: dict[str, Any]) -> Any:
    values = dict(values)
    manifest = str(corpus / values.pop("manifest", "clips.csv"))
    return shard_config(corpus, Path(), **_SMALL | values).override({"manifest": manifest, "out": out})


def run(corpus: Path, out: str, values: dict[str, Any]) -> dict[str, Any]:
    """The command in a process forked from this one."""
    shard_writer._Kept.decoder = None  # whose child process belongs to the parent
    return shard_videos(settings(corpus, out, values), in_this_process)


@pytest.mark.parametrize(
    ("out_uri", "trials"),
    [
        pytest.param("local", range(1), id="local-few"),
        pytest.param("local", range(1, 12), id="local-many", marks=pytest.mark.long),
        pytest.param("s3", range(12), id="s3", marks=pytest.mark.long),
    ],
    indirect=["out_uri"],
)
@pytest.mark.parametrize("values", [{}, _GROWN, _OTHER], ids=["same", "grown", "overwrite"])
def test_published_shards_are_those_of_one_run(
    corpus: Path, out_uri: str, values: dict[str, Any], trials: range, tmp_path: Path
) -> None:
    def made(out: str, these: dict[str, Any]) -> str:
        return shard_videos(settings(corpus, str(tmp_path / out), these), in_this_process)["fingerprint"]

    expected = [{made("a", {})}, {made("b", values), made("a", values)}]  # rows are added to what is there
    for trial in trials:
        rng = random.Random(f"{out_uri[:2]} {values} {trial}")
        out = f"{out_uri}{trial}"
        first = start(partial(run, corpus, out, {}), rng.randint(1, 120))
        second = start(partial(run, corpus, out, values | {"take_over": True}), rng.choice([0, rng.randint(1, 120)]))
        codes = finish(first), finish(second)
        found = FrameManifest.load(out)
        for shard in found.shards:
            shard.verify(out)
        assert 0 in codes
        wanted = set[str]().union(
            *(fingerprints for code, fingerprints in zip(codes, expected, strict=True) if code == 0)
        )
        assert found.fingerprint in wanted, (trial, codes)
        if codes[1] == 0:
            again = shard_videos(settings(corpus, out, values | {"overwrite": False}), in_this_process)
            assert again["fingerprint"] in expected[1]
            assert again["reused"]
