"""The benchmark on a small random model: its scores are the model's, whatever the number of workers."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from evilm.config.stages import Benchmark
from evilm.dataloader.masking import region_masks
from evilm.errors import CheckpointError, ConfigError, ShardError
from evilm.eval.benchmark import benchmark, rank_edges
from evilm.io import storage
from evilm.model.evilm_model import EViLMModel
from evilm.seeds import clip_keys
from evilm.shards import FrameManifest, decode_frames, read_group
from evilm.text.vocab import Vocab
from helpers.random_model import FRAMES, NUM_CODES, PX, captions, make_codes, make_frames, make_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with model, frames and codes."""
    folder = tmp_path_factory.mktemp("root")
    make_model(folder / "model")
    make_codes(folder / "codes", make_frames(folder / "frames"))
    return folder


@pytest.fixture(scope="module")
def summary(root: Path, ray_local) -> dict:
    """The benchmark with one worker."""
    return benchmark(Benchmark(root=str(root)))


def clips_of(root: Path) -> dict[str, torch.Tensor]:
    """Frames of every clip."""
    manifest, frames = FrameManifest.load(str(root / "frames")), {}
    for shard in manifest.shards:
        for group in range(len(shard.row_groups)):
            table = read_group(storage.join(manifest.uri, shard.file), group, ["clip_id", "frames"])
            for clip_id, jpegs in zip(table["clip_id"].to_pylist(), table["frames"].to_pylist(), strict=True):
                frames[clip_id] = torch.from_numpy(decode_frames(jpegs))[None]
    return frames


def test_scores_equal_the_models_pair_by_pair(root: Path, summary: dict):
    table = pq.read_table(root / "benchmark" / "scores.parquet").to_pydict()
    student, vocab = EViLMModel.from_pretrained(str(root / "model")), Vocab.load(str(root / "model" / "vocab"))
    frames, caption_at = clips_of(root), dict(zip(table["caption_index"], table["caption"], strict=True))
    for clip in (0, 7, 20):
        video = student.encode_video(frames[table["clip_id"][clip]])
        for index in (0, 5, 11, len(caption_at) - 1):
            ids = torch.tensor([vocab.encode(caption_at[index], student.config.max_text_len)])
            text = student.encode_text(ids, torch.zeros_like(ids, dtype=torch.bool))
            logits = student.match_logits(student.decode(video, text).cls)[0]
            assert table["match"][clip][index] == pytest.approx(float((logits[1] - logits[0]).detach()), abs=1e-4)


def test_summary_counts_clips_and_is_reused(root: Path, summary: dict):
    assert (summary["num_clips"], summary["num_captions"], summary["num_choices"]) == (26, len(set(captions(26))), 5)
    metrics = summary["metrics"]
    assert {f"{way}_{name}" for way in ("t2v", "v2t") for name in ("r1", "r5", "r10", "median_rank")} <= set(metrics)
    assert metrics["choice_accuracy_heldout"]["count"] + metrics["choice_accuracy_seen"]["count"] == 26
    assert metrics["t2v_r10"]["chance"] == pytest.approx(10 / 26, abs=1e-6)
    assert abs(metrics["choice_accuracy"]["sigmas_above_chance"]) < 5  # random weights
    assert (root / "benchmark" / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert benchmark(Benchmark(root=str(root)))["reused"] is True


@pytest.mark.long
def test_lost_scores_are_computed_again(root: Path, summary: dict, tmp_path: Path):
    shutil.copytree(root / "benchmark", tmp_path / "scores")
    (tmp_path / "scores" / "scores.parquet").unlink()
    again = benchmark(Benchmark(root=str(root), out=str(tmp_path / "scores")))
    assert (again["reused"], again["metrics"]) == (False, summary["metrics"])
    assert (tmp_path / "scores" / "scores.parquet").exists()


def test_masked_codes_are_scored_on_masked_regions_only(root: Path, summary: dict):
    assert summary["num_masked_regions"] == 26 * FRAMES * 2  # half of 2 x 2 regions a frame
    codes = {f"c{n:03d}": ids for n, ids in enumerate(_codes(root))}
    student, vocab = EViLMModel.from_pretrained(str(root / "model")), Vocab.load(str(root / "model" / "vocab"))
    hits = always_3 = 0
    for n, (clip_id, frames) in enumerate(sorted(clips_of(root).items())):
        (mask,) = region_masks("block", PX // 32, FRAMES, 0.5, clip_keys("benchmark", 0, 0, [clip_id]))
        ids = torch.tensor([vocab.encode(captions(26)[n], student.config.max_text_len)])
        text = student.encode_text(ids, torch.zeros_like(ids, dtype=torch.bool))
        out = student.decode(student.encode_video(frames, torch.from_numpy(mask)[None]), text)
        predicted = student.mvm_logits(out.regions[0][mask.ravel()]).argmax(-1).numpy()
        hits += int((predicted == codes[clip_id][mask.ravel()]).sum())
        always_3 += int((codes[clip_id][mask.ravel()] == 3).sum())
    count = summary["num_masked_regions"]
    assert summary["metrics"]["mvm_accuracy"]["value"] == pytest.approx(hits / count, abs=1e-6)
    assert summary["metrics"]["mvm_accuracy"]["chance"] == pytest.approx(always_3 / count, abs=1e-6)


def _codes(root: Path) -> np.ndarray:
    files = sorted((root / "codes" / "t0").glob("*.parquet"))
    return np.array([ids for file in files for ids in pq.read_table(file)["code_ids"].to_pylist()])


@pytest.mark.long
def test_scores_do_not_depend_on_the_number_of_workers(root: Path, summary: dict, tmp_path: Path):
    config = Benchmark(root=str(root), out=str(tmp_path / "two")).override({"cluster.num_workers": 2})
    again = benchmark(config)
    assert again["metrics"] == summary["metrics"]
    first, second = (pq.read_table(f / "scores.parquet") for f in (root / "benchmark", tmp_path / "two"))
    assert first.equals(second)


@pytest.mark.long
def test_max_clips_takes_the_first_clips(root: Path, ray_local, tmp_path: Path):
    config = Benchmark(root=str(root), out=str(tmp_path / "b"), max_clips=10, codes="none")
    summary = benchmark(config)
    assert summary["num_clips"] == 10
    assert "mvm_accuracy" not in summary["metrics"]
    every = pq.read_table(root / "benchmark" / "scores.parquet")["clip_id"].to_pylist()
    assert pq.read_table(tmp_path / "b" / "scores.parquet")["clip_id"].to_pylist() == every[:10]


@pytest.mark.long
def test_model_with_constant_scores_is_rejected(root: Path, ray_local, tmp_path: Path):
    student = make_model(tmp_path / "model")
    with torch.no_grad():
        for parameter in student.match_head.parameters():
            parameter.zero_()
    student.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="rows of scores are constant"):
        benchmark(Benchmark(root=str(root), model=str(tmp_path / "model"), out=str(tmp_path / "b")))


@pytest.mark.long
def test_damaged_frames_are_named_through_ray_errors(root: Path, ray_local, tmp_path: Path):
    manifest = make_frames(tmp_path / "frames", num_clips=12)
    place = tmp_path / "frames" / manifest.shards[1].file
    data = bytearray(place.read_bytes())
    jpeg = data.find(b"\xff\xd8\xff")
    data[jpeg + 300 : jpeg + 310] = b"0123456789"
    place.write_bytes(data)
    config = Benchmark(root=str(root), frames=str(tmp_path / "frames"), out=str(tmp_path / "b"), num_choices=2)
    with pytest.raises(ShardError, match=r"cannot read row group 0 of .*1\.parquet"):
        benchmark(config)


def test_inputs_that_do_not_fit_are_rejected(root: Path, tmp_path: Path):
    config = Benchmark(root=str(root), out=str(tmp_path / "b"))
    with pytest.raises(ShardError, match=r"no clips of split 'val'; it has test \(26\)"):
        benchmark(config.model_copy(update={"split": "val", "codes": "none"}))
    with pytest.raises(CheckpointError, match="holds no E-ViLM model"):
        benchmark(config.model_copy(update={"model": str(tmp_path / "none")}))
    make_model(tmp_path / "four", num_frames=4)
    with pytest.raises(ShardError, match="2 frames per clip, the model takes 4"):
        benchmark(config.model_copy(update={"model": str(tmp_path / "four")}))
    make_model(tmp_path / "codes", num_codes=NUM_CODES + 1)
    named = config.model_copy(update={"model": str(tmp_path / "codes"), "codes": str(root / "codes")})
    with pytest.raises(ShardError, match="has 20 codes, the model 21"):
        benchmark(named)
    with pytest.raises(ConfigError, match="num_choices"):
        benchmark(config.model_copy(update={"num_choices": 30}))


@pytest.mark.parametrize("num_items", [1, 2, 40, 41, 59, 240])
def test_bars_of_a_histogram_of_ranks_hold_as_many_ranks_each(num_items: int):
    counts = np.histogram(np.arange(1, num_items + 1), rank_edges(num_items))[0]
    assert counts.sum() == num_items
    assert len(counts) <= 40
    assert set(counts[:-1]) <= {counts[0]}
    assert counts[-1] <= counts[0]
