"""Metrics of an evaluation do not depend on the size of its batches or on the number of workers."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import torch
import torch.distributed as dist

from evilm.config.models import EViLMConfig
from evilm.config.training import ObjectivesConfig, ScheduleConfig
from evilm.dataloader import sampler
from evilm.dataloader.collate import PretrainCollate
from evilm.dataloader.loader import DataLoader, evaluation_loader
from evilm.model.evilm_model import EViLMModel
from evilm.objectives.pretraining_objective import PretrainObjective
from evilm.shards import ShardPair, codes_schema, write_codes, write_frames
from evilm.text.vocab import Vocab
from evilm.text.vocab_builder import train_wordpiece
from evilm.train.validation import evaluate
from helpers.stored_frames import frame_row

CLIPS, POOL, FRAMES, PX, GRID, NUM_CODES = 150, 6, 2, 64, 2, 20
WORDS = ["red", "blue", "green", "star", "ring", "cross", "moves", "waits", "spins", "left", "right", "two"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[ShardPair]:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("shards")
    frames, codes, groups = [], [], [16] * (CLIPS // 16) + [CLIPS % 16]
    first = 0
    for size in groups:
        rows = [_row(first + number, rng) for number in range(size)]
        ids = rng.integers(0, NUM_CODES, (size, FRAMES * GRID**2)).tolist()
        coded = [
            {"clip_id": row["clip_id"], "row": 0, "views": [], "code_ids": own}
            for row, own in zip(rows, ids, strict=True)
        ]
        frames.append(rows)
        codes.append(pa.Table.from_pylist(coded, schema=codes_schema(FRAMES * GRID**2)))
        first += size
    write_frames(frames, {}, str(folder / "frames.parquet"))
    write_codes(codes, FRAMES * GRID**2, {}, str(folder / "codes.parquet"))
    return [ShardPair(str(folder / "frames.parquet"), str(folder / "codes.parquet"), CLIPS, groups)]


def _row(number: int, rng: np.random.Generator) -> dict[str, Any]:
    pixels = rng.integers(0, 256, (FRAMES, 4, 4, 3), dtype=np.uint8).repeat(PX // 4, 1).repeat(PX // 4, 2)
    caption = " ".join(rng.choice(WORDS, rng.integers(1, 9)))
    jpegs = [simplejpeg.encode_jpeg(np.ascontiguousarray(frame)) for frame in pixels]
    return frame_row(clip_id=f"clip{number:03d}", split="val", captions=[caption], frames=jpegs)


@pytest.fixture(scope="module")
def objective() -> PretrainObjective:
    return _objective()


def _vocab() -> Vocab:
    return Vocab(train_wordpiece(WORDS, 80, 1))


def _objective() -> PretrainObjective:
    torch.manual_seed(0)
    sizes = {"input_px": PX, "num_frames": FRAMES, "text_dim": 32, "text_layers": 1, "text_heads": 2, "dim": 48}
    sizes |= {"text_positions": 40, "decoder_layers": 1, "decoder_heads": 3, "num_codes": NUM_CODES, "max_text_len": 12}
    student = EViLMModel(EViLMConfig(video_encoder="edgenext_xx_small", vocab_size=_vocab().size, **sizes))
    return PretrainObjective(student, ObjectivesConfig(), POOL)


def _loader(pairs: list[ShardPair], rank: int, world: int, micro_batch: int) -> DataLoader:
    collate = PretrainCollate(_vocab(), 3, 12, GRID, 0.15, 0.4, "block")
    schedule = ScheduleConfig(eval_clips=140, eval_pool_clips=POOL)
    loader = evaluation_loader(pairs, schedule, collate, rank, world, micro_batch)
    assert loader is not None
    return loader


@torch.no_grad()
def _metrics(objective: PretrainObjective, loader_of: Callable[[int], DataLoader], world: int) -> dict[str, float]:
    """The scores of all ranks' steps, worked off in one process."""
    objective.eval()
    states = []
    for rank in range(world):
        scores, loader = objective.scores(), loader_of(rank)
        for batch in loader.batches(0, loader.order.num_steps):
            scores.add(batch, torch.device("cpu"))
        states.append(scores.state())
    return objective.scores().result(states)


@pytest.mark.parametrize(("micro_batch", "world"), [(64, 1), (16, 2), (64, 2), (16, 4), (64, 4)])
def test_metrics_do_not_depend_on_batch_size_or_workers(
    pairs: list[ShardPair], objective: PretrainObjective, expected: dict[str, float], micro_batch: int, world: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sampler, "NEGATIVE_GROUP_CLIPS", 70)  # several groups, of 72 clips
    found = _metrics(objective, lambda rank: _loader(pairs, rank, world, micro_batch), world)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def expected(pairs: list[ShardPair], objective: PretrainObjective) -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "NEGATIVE_GROUP_CLIPS", 70)
        found = _metrics(objective, lambda rank: _loader(pairs, rank, 1, 16), 1)
    assert {"loss", "mlm_loss", "vtm_loss", "mvm_loss", "match_auc", "code_usage"} <= set(found)
    assert 0.3 < found["match_auc"] < 0.7
    return found


def _work(rank: int, pairs: list[ShardPair], meeting: str, out: str) -> None:
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    metrics = evaluate(_objective(), _loader(pairs, rank, 2, 32), torch.device("cpu"), 2, nullcontext())
    torch.save(metrics, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_agree_with_one(pairs: list[ShardPair], objective: PretrainObjective, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        _work, (pairs, str(tmp_path / "meeting"), str(tmp_path)), 2, start_method="fork"
    )
    alone = _metrics(objective, lambda rank: _loader(pairs, rank, 1, 64), 1)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(alone, rel=1e-5)
