"""Scores of downstream tasks: each item once, equal to the model's own, never on videos that it was trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from evilm.config.items import ItemsConfig
from evilm.config.presets import defaults
from evilm.config.stages import Benchmark
from evilm.dataloader.item_loader import ClipIndex, ItemTable
from evilm.errors import ConfigError
from evilm.eval.benchmark import benchmark
from evilm.eval.task_subject import open_subject
from evilm.items.item import Item
from evilm.items.item_tables import ItemsManifest
from evilm.items.seen_clips import write_seen
from evilm.items.task_layouts import in_val
from evilm.model.inference import EViLM
from evilm.seeds import hash64
from evilm.shards import FrameManifest
from evilm.tasks.finetune import finetune
from helpers.item_tables import write_items
from helpers.paths import SMALL
from helpers.random_model import make_model, named_frames
from helpers.workflow import Workflow, small_finetune


@pytest.fixture(scope="module")
def root(tuned_questions: Workflow) -> Path:
    """The root of a model fine-tuned on questions."""
    return tuned_questions[0]


@pytest.fixture(scope="module")
def retrieval_root(root: Path) -> Path:
    """The same with a model fine-tuned on retrieval."""
    finetune(small_finetune(root, "didemo-retrieval", **{"schedule.max_steps": 4}))
    return root


def score(root: Path, task: str, **values: Any) -> dict[str, Any]:
    """Score a task."""
    config = defaults("benchmark", str(SMALL)).override({"root": str(root), "task": task} | values)
    assert isinstance(config, Benchmark)
    return benchmark(config)


def test_each_question_counts_once_and_accuracy_is_the_share_of_right_predictions(root: Path) -> None:
    summary = score(root, "msvd-qa")
    found = pq.read_table(Path(summary["out"]) / "predictions.parquet")
    items = ItemsManifest.load(str(root / "msvd-qa-items"))
    assert sorted(found["item_id"].to_pylist()) == sorted(items.read("test")["item_id"].to_pylist())
    right = np.array(found["predicted"].to_pylist()) == np.array(found["answer"].to_pylist())
    assert found["correct"].to_pylist() == right.tolist()
    metrics = summary["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(right.mean(), abs=1e-6)
    assert metrics["accuracy"]["num_clips"] == len(set(found["clip_id"].to_pylist()))
    for name in set(found["type"].to_pylist()):
        own = np.array(found["type"].to_pylist()) == name
        assert metrics[f"accuracy/{name}"]["value"] == pytest.approx(right[own].mean(), abs=1e-6)
    answers = items.read("train")["answer"].to_pylist()
    guess = max(sorted(set(answers)), key=answers.count)
    share = np.mean(np.array(found["answer"].to_pylist()) == guess)
    assert metrics["accuracy"]["chance"] == pytest.approx(share, abs=0.05)
    assert not summary["leak"]
    assert summary["coverage"] == summary["ceiling"] == 1.0
    page = (Path(summary["out"]) / "errors.html").read_text()
    assert "data:image/jpeg" in page
    assert (Path(summary["out"]) / "errors.png").stat().st_size > 10_000


@pytest.mark.long
def test_scores_do_not_depend_on_workers_or_batches(root: Path, tmp_path: Path) -> None:
    first = pq.read_table(Path(score(root, "msvd-qa")["out"]) / "predictions.parquet")
    values = {"out": str(tmp_path / "scores"), "batch_items": 17, "cluster.num_workers": 2}
    second = pq.read_table(Path(score(root, "msvd-qa", **values)["out"]) / "predictions.parquet")
    for name in ("item_id", "predicted", "correct"):
        assert first[name].equals(second[name]), name
    np.testing.assert_allclose(first["probability"].to_numpy(), second["probability"].to_numpy(), rtol=1e-4)


def test_a_model_is_not_scored_on_videos_that_it_was_trained_on(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"was trained on 64 and validated on 0 of the 64 videos of msvd-qa, split train"
    ):
        score(root, "msvd-qa", split="train", out=str(tmp_path / "a"))


@pytest.mark.long
def test_scores_on_videos_that_a_model_was_trained_on_are_marked(root: Path, tmp_path: Path) -> None:
    summary = score(root, "msvd-qa", split="train", out=str(tmp_path / "a"), allow_leak=True)
    assert summary["leak"]
    assert summary["num_seen_clips"] == 64


@pytest.mark.long
def test_fast_retrieval_ranks_as_its_embeddings_do(retrieval_root: Path) -> None:
    summary = score(retrieval_root, "didemo-retrieval", rerank_top=24, pairwise=True)
    out, metrics = Path(summary["out"]), summary["metrics"]
    texts, videos = (pq.read_table(out / f"{name}_embeddings.parquet") for name in ("caption", "video"))
    scores = np.stack(texts["embedding"].to_pylist()) @ np.stack(videos["embedding"].to_pylist()).T
    own = [videos["clip_id"].to_pylist().index(clip) for clip in texts["clip_id"].to_pylist()]
    rank = (scores > scores[np.arange(len(own)), own][:, None]).sum(1)
    for k in (1, 5, 10):
        assert metrics[f"t2v_r{k}"]["value"] == pytest.approx((rank < k).mean(), abs=1e-6)
        assert metrics[f"reranked_t2v_r{k}"]["value"] == metrics[f"pairwise_t2v_r{k}"]["value"], "all were re-ranked"
    assert summary["seconds_by_way"].keys() == {"fast", "products", "reranked", "pairwise"}


@pytest.mark.long
def test_pairwise_scores_are_the_models_own(root: Path, tmp_path: Path) -> None:
    model = str(root / "model")
    summary = score(root, "didemo-retrieval", model=model, out=str(tmp_path / "pairs"))
    assert summary["zero_shot"]
    frames, items = FrameManifest.load(str(root / "frames")), ItemsManifest.load(str(root / "didemo-retrieval-items"))
    table = ItemTable(items, "test", ClipIndex(frames)).table
    assert summary["metrics"]["t2v_r1"]["count"] == len(table)
    assert EViLM.from_pretrained(model).student.config.max_text_len == 40


@pytest.mark.long
def test_choices_and_probes_of_a_pretrained_model(root: Path, tmp_path: Path) -> None:
    choice = score(root, "msrvtt-mc", model=str(root / "model"), out=str(tmp_path / "mc"))
    assert choice["metrics"]["accuracy"]["chance"] == pytest.approx(0.2)
    label = score(root, "hmdb51", model=str(root / "model"), out=str(tmp_path / "probe"), **{"items.val_share": 0.2})
    assert label["probe"]["feature"] in ("regions", "cls", "encoder")
    assert label["metrics"].keys() >= {"accuracy", "accuracy_top5"}


@pytest.mark.long
def test_the_9k_list_leaks_into_multiple_choice_and_the_7k_list_does_not(root: Path, tmp_path: Path) -> None:
    models = {}
    for protocol in ("7k", "9k"):
        values = {"schedule.max_steps": 2, "items.protocol": protocol, "items.val_share": 0.0, "export": "last"}
        tuned = finetune(small_finetune(root, "msrvtt-retrieval", out=str(tmp_path / protocol), **values))
        models[protocol] = tuned["out"]
    listed = (root / "corpus/annotations/msrvtt-retrieval/MSRVTT_train.9k.csv").read_text().split()
    rows = (root / "corpus/annotations/msrvtt-mc/msrvtt_mc_test.jsonl").read_text().splitlines()
    leaked = {json.loads(row)["clip_name"] for row in rows} & set(listed)
    assert leaked
    with pytest.raises(
        ConfigError, match=rf"was trained on {len(leaked)} and validated on 0 of the \d+ videos of msrvtt-mc"
    ):
        score(root, "msrvtt-mc", model=models["9k"], out=str(tmp_path / "mc9"))
    assert not score(root, "msrvtt-mc", model=models["7k"], out=str(tmp_path / "mc7"))["leak"]


@pytest.mark.parametrize(("protocol", "trained", "chosen"), [("9k", 1883, 107), ("7k", 0, 0)])
def test_the_real_9k_list_is_rejected_with_its_count(
    shared_data: Path, tmp_path: Path, protocol: str, trained: int, chosen: int
) -> None:
    lists = shared_data / "annotations" / "msrvtt"
    tested = (lists / "test_list_full.txt").read_text().split()
    frames = named_frames(tmp_path / "frames", tested)
    options = ("a", "b", "c", "d", "e")
    items = write_items(
        tmp_path / "items", "choice", [Item("test", f"mc{n}", v, "", "a", options) for n, v in enumerate(tested)]
    )
    make_model(tmp_path / "model")
    listed = (lists / f"MSRVTT_train.{protocol}.csv").read_text().split()[1:]
    hashes = np.array([(hash64(f"id\0{video}".encode()), n) for n, video in enumerate(listed)], dtype=np.uint64)
    is_val = np.array([in_val(video, ItemsConfig().val_share) for video in listed])
    write_seen(str(tmp_path / "model"), hashes[~is_val], chosen_on=hashes[is_val])
    config = Benchmark.model_validate({"task": "msrvtt-mc", "model": str(tmp_path / "model")})
    if trained:
        message = f"trained on {trained} and validated on {chosen} of the 2990 videos of msrvtt-mc, split test "
        with pytest.raises(ConfigError, match=message):
            open_subject(config, frames, items)
        config = config.model_copy(update={"allow_leak": True})
    subject = open_subject(config, frames, items)
    assert (subject.num_seen, subject.num_chosen) == (trained, chosen)
