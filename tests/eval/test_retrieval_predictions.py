"""Predictions of retrieval: by embeddings, ranked again, and by the matching head of a model without embeddings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from evilm.config.finetune_command import HeadConfig
from evilm.config.stages import Benchmark
from evilm.eval.benchmark import benchmark
from evilm.items.item import Item
from evilm.items.seen_clips import write_seen
from evilm.model.task_model import TaskModel, TaskSpec
from evilm.text.vocab import Vocab
from helpers.item_tables import write_items
from helpers.random_model import captions, make_frames, make_model

TASK, CLIPS = "didemo-retrieval", 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, and two captions of each."""
    folder = tmp_path_factory.mktemp("root")
    make_frames(folder / "frames", CLIPS)
    texts = captions(2 * CLIPS)
    items = [Item("test", f"i{k}", f"c{k // 2:03d}", text) for k, text in enumerate(texts)]
    write_items(folder / "items", "retrieval", items, task=TASK)
    return folder


def score(root: Path, name: str, match_weight: float | None = None, **values: Any) -> tuple[dict[str, Any], Any]:
    """Score a random model, with a head unless `match_weight` is None; the summary and the predictions."""
    model = root / name
    if not model.exists():
        student = make_model(model)
        write_seen(str(model), np.zeros((0, 2), dtype=np.uint64))
        if match_weight is not None:
            spec = TaskSpec(TASK, "retrieval", (), HeadConfig(embed_dim=8, match_weight=match_weight))
            TaskModel(student, spec, Vocab.load(str(model / "vocab"))).save_pretrained(str(model))
    places = {"root": str(root), "model": str(model), "task_items": str(root / "items"), "task": TASK}
    summary = benchmark(Benchmark.model_validate({**places, "out": f"{model}-scores", **values}))
    file = Path(summary["out"], "predictions.parquet")
    return summary, pq.read_table(file) if file.exists() else None


def check(found: Any, figures: dict[str, Any], prefix: str = "", column: str = "rank") -> None:
    rank = found[column].to_numpy()
    assert len(found) == 2 * CLIPS
    for k in (1, 5):
        assert figures[f"{prefix}t2v_r{k}"]["value"] == pytest.approx((rank <= k).mean(), abs=1e-6)


def test_zero_shot_retrieval_writes_its_predictions(ray_local: Any, root: Path) -> None:
    summary, found = score(root, "pretrained", max_text_len=4)
    assert summary["zero_shot"]
    check(found, summary["metrics"])
    assert found["text"].to_pylist() == captions(2 * CLIPS)
    right = [rank == 1 for rank in found["rank"].to_pylist()]
    assert found["correct"].to_pylist() == right
    is_first = [a == b for a, b in zip(found["predicted"].to_pylist(), found["clip_id"].to_pylist(), strict=True)]
    assert is_first == right
    lengths = Vocab.load(str(root / "pretrained" / "vocab")).num_words(captions(2 * CLIPS))
    assert 0 < (lengths > 4).mean() == pytest.approx(summary["cut_texts"])
    assert (summary["max_text_len"], summary["num_frames"]) == (4, 2)
    worst = found.sort_by([("rank", "descending")]).slice(0, 1).to_pylist()[0]
    page = Path(summary["out"], "errors.html").read_text()
    first = page[page.index("<img") :]
    assert f"<td>{worst['text']}</td><td>{worst['clip_id']}, rank {worst['rank']:g}</td>" in page
    assert first.index(f"rank {worst['rank']:g}<") < first.index("</tr>")
    assert Path(summary["out"], "errors.png").stat().st_size > 10_000


def test_scores_of_earlier_versions_are_reused(ray_local: Any, root: Path) -> None:
    out = Path(score(root, "earlier")[0]["out"])
    shutil.rmtree(out / "_runs")
    (out / "predictions.parquet").unlink()
    for name, lost in (("run.json", ("max_text_len", "num_frames")), ("summary.json", ("cut_texts",))):
        content = json.loads((out / name).read_text())
        for key in lost:
            content.get("settings", content).pop(key)
        (out / name).write_text(json.dumps(content))
    assert score(root, "earlier")[0]["reused"]
    assert score(root, "earlier", max_text_len=12, num_frames=2)[0]["reused"], "these are the model's"


@pytest.mark.long
def test_ranks_of_both_ways_are_written(ray_local: Any, root: Path) -> None:
    summary, found = score(root, "tuned", 1.0, rerank_top=4, pairwise=True)
    check(found, summary["metrics"])
    check(found, summary["metrics"], "reranked_", "reranked_rank")
    assert (found["reranked_rank"].to_numpy() <= 4).sum() == (found["rank"].to_numpy() <= 4).sum()
    assert not found["reranked_rank"].equals(found["rank"])
    out = f"{summary['out']}-all"
    summary, found = score(root, "tuned", rerank_top=CLIPS, pairwise=True, out=out)
    for k in (1, 5, 10):
        pairwise, reranked = (summary["metrics"][f"{way}_t2v_r{k}"] for way in ("pairwise", "reranked"))
        assert pairwise == reranked


@pytest.mark.long
def test_a_head_without_matching_loss_is_not_ranked_again(
    ray_local: Any, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary, found = score(root, "unmatched", 0.0, rerank_top=4)
    assert "reranked_rank" not in found.column_names
    assert not any(name.startswith("reranked") for name in summary["metrics"])
    assert "are not ranked again" in caplog.text
    assert "--head.match-weight 0" in caplog.text
