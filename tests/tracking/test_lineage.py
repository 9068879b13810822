"""The runs of a whole workflow hang together: tags, links, descriptions, pictures, the champion."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evilm.config.presets import defaults
from evilm.config.stages import Benchmark, BuildVocab
from evilm.io.outputs import Output
from evilm.tracking.mlflow_run import close_run, describe_run, ensure_run, is_closed
from evilm.tracking.registry import REGISTERED_NAME
from evilm.tracking.track_run import track
from helpers.paths import ROOT, SMALL
from helpers.workflow import Workflow

DOCS = ROOT / "docs" / "tracking.md"
MADE_FROM = {
    "shard_videos": {"manifest": "render_corpus"},
    "build_vocab": {"captions": "render_corpus"},
    "train_tokenizer": {"frames": "shard_videos", "vocab": "build_vocab"},
    "precompute_codes": {"frames": "shard_videos", "tokenizer": "train_tokenizer"},
    "pretrain": {
        "frames": "shard_videos", "vocab": "build_vocab", "tokenizer": "train_tokenizer", "codes": "precompute_codes",
    },
    "benchmark": {"frames": "shard_videos", "codes": "precompute_codes", "model": "pretrain"},
}  # fmt: skip


@pytest.fixture(scope="module")
def scored(small_workflow: Workflow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs of the small workflow and of a benchmark of its model, by command; and the store's client."""
    from mlflow import MlflowClient

    from evilm.eval.benchmark import benchmark

    root, _ = small_workflow
    uri, out = f"sqlite:///{root / 'mlflow.db'}", str(tmp_path_factory.mktemp("scored") / "benchmark")
    config = defaults("benchmark", str(SMALL)).override({"root": str(root), "out": out, "tracking.uri": uri})
    assert isinstance(config, Benchmark)
    track("benchmark", benchmark, config)
    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`evilm.out` LIKE '{root}%'")
    found: dict[str, Any] = {run.data.tags["evilm.stage"]: run for run in runs if run.data.tags.get("evilm.made")}
    found["benchmark"] = client.search_runs(experiments, f"tags.`evilm.out` = '{out}'")[0]
    return {"client": client, "runs": found, "root": root}


def test_every_run_links_the_runs_of_its_inputs(scored: dict[str, Any]) -> None:
    runs = scored["runs"]
    assert runs.keys() == MADE_FROM.keys() | {"render_corpus"}
    for stage, sources in MADE_FROM.items():
        run = runs[stage]
        note = run.data.tags["mlflow.note.content"]
        linked = dict(re.findall(r"\[([\w-]+)\]\(#/experiments/\d+/runs/(\w+)\)", note))
        for name, source_run in sources.items():
            source = runs[source_run]
            assert run.data.tags[f"evilm.from.{name}"] == source.info.run_id, f"{stage} from {name}"
            assert linked[source.info.run_name] == source.info.run_id
        assert "### Results" in note
        assert run.data.tags["evilm.root"] == (scored["root"].name if stage != "benchmark" else "scored0")
        assert run.info.run_name.startswith(f"{stage}-{run.data.tags['evilm.root']}-")
    assert "| t2v_r10 | " in runs["benchmark"].data.tags["mlflow.note.content"]
    assert "| val.loss | " in runs["pretrain"].data.tags["mlflow.note.content"]


def test_figures_are_artifacts_of_their_runs(scored: dict[str, Any]) -> None:
    client, runs = scored["client"], scored["runs"]
    for stage, picture in (("pretrain", "losses.png"), ("train_tokenizer", "losses.png"), ("benchmark", "ranks.png")):
        assert f"figures/{picture}" in [item.path for item in client.list_artifacts(runs[stage].info.run_id, "figures")]
    assert {run.info.experiment_id for run in runs.values()} == {client.get_experiment_by_name("evilm").experiment_id}


def test_stages_are_nested_below_the_training_and_scores_are_shown(scored: dict[str, Any]) -> None:
    runs = scored["runs"]
    parents = {stage: run.data.tags.get("mlflow.parentRunId") for stage, run in runs.items()}
    prepared = runs.keys() - {"pretrain", "benchmark"}
    assert {stage for stage, parent in parents.items() if parent == runs["pretrain"].info.run_id} == prepared
    assert parents["pretrain"] == parents["benchmark"] is None
    assert re.fullmatch(r"t2v_r10 \d+\.\d%", runs["benchmark"].data.tags["evilm.score"])
    assert re.fullmatch(r"val/loss [\d.]+", runs["pretrain"].data.tags["evilm.score"])


def test_training_has_no_metrics_beside_its_curves(scored: dict[str, Any]) -> None:
    logged = {name.partition("/")[0] for name in scored["runs"]["pretrain"].data.metrics}
    assert {"train", "val"} <= logged <= {"train", "val", "time", "chance"}
    assert scored["runs"]["build_vocab"].data.metrics.keys() == {"num_words", "unk_ratio", "seconds"}


def test_zero_shot_scores_belong_to_the_registered_model_and_its_data(scored: dict[str, Any]) -> None:
    client, run = scored["client"], scored["runs"]["benchmark"]
    order = [{"field_name": "metrics.t2v_r10", "ascending": False, "dataset_name": "zero-shot-test"}]
    best = client.search_logged_models([run.info.experiment_id], order_by=order)[0]
    (metric,) = [metric for metric in best.metrics if metric.key == "t2v_r10"]
    assert (metric.value, metric.run_id) == (run.data.metrics["t2v_r10"], run.info.run_id)
    assert best.source_run_id == scored["runs"]["pretrain"].info.run_id
    assert [model.model_id for model in client.get_run(run.info.run_id).inputs.model_inputs] == [best.model_id]
    made = scored["runs"]["train_tokenizer"].data.tags["evilm.made"]
    assert [
        model.name for model in client.search_logged_models([run.info.experiment_id], f"tags.`evilm.made` = '{made}'")
    ] == ["evilm-tokenizer"]


def test_benchmark_writes_scores_and_verdict_to_the_model_version(scored: dict[str, Any]) -> None:
    verdict = scored["runs"]["benchmark"].data.tags["evilm.verdict"]
    version = re.match(r"version (\d+) ", verdict)
    assert version
    tags = scored["client"].get_model_version(REGISTERED_NAME, version[1]).tags
    assert float(tags["evilm.score.t2v_r10"].split(" ± ")[0]) >= 0
    assert tags["evilm.scored_by"] == scored["runs"]["benchmark"].info.run_id


def test_filters_in_the_docs_find_runs(scored: dict[str, Any]) -> None:
    client, runs = scored["client"], scored["runs"]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    filters = re.findall(r"^\| `` ?(.+?) ?`` \|", DOCS.read_text(), re.MULTILINE)
    assert len(filters) >= 4
    frames = runs["shard_videos"].data.tags["evilm.made"]
    for line in filters:
        own = line.replace("FRAMES", frames).replace("'demo'", f"'{scored['root'].name}'")
        assert client.search_runs(experiments, own), own


def test_result_missed_by_the_server_is_sent_by_the_same_command(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    out = str(tmp_path / "out")

    def work(config: BuildVocab) -> dict[str, Any]:
        with Output(config, out, {"captions": "abc"}) as output:
            if output.done:
                return output.done | {"reused": True}
            return output.close({"out": out, "inputs": output.inputs, "num_words": 3, "fingerprint": "f"})

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    track("build_vocab", work, BuildVocab())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for _ in range(2):
        assert track("build_vocab", work, BuildVocab())["reused"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("evilm").experiment_id])
    assert (run.info.status, run.data.metrics["num_words"]) == ("FINISHED", 3)


def test_broken_mlflow_note_of_an_input_costs_only_its_link(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    notes = ['["somebody else\'s"]', "no JSON", json.dumps({"uri": uri}), json.dumps({"uri": uri, "run_id": "0" * 32})]
    for number, note in enumerate(notes):
        (tmp_path / f"data{number}").mkdir()
        (tmp_path / f"data{number}" / "mlflow.json").write_text(note)
        out = str(tmp_path / f"out{number}")
        config = BuildVocab(manifest=str(tmp_path / f"data{number}" / "clips.csv"))
        with Output(config, out, {}):
            pass
        run = describe_run(config, "build_vocab", out, {"captions": "abc"})
        close_run(run, config, {"num_words": 3}, {})
        assert run
        assert is_closed(run), note
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("evilm").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * len(notes)
    assert not [tag for run in runs for tag in run.data.tags if tag.startswith("evilm.from.")]


def test_deleted_run_is_replaced(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = str(tmp_path / "out")
    with Output(BuildVocab(), out, {}):
        pass
    run = describe_run(BuildVocab(), "build_vocab", out, {})
    assert run
    first = ensure_run(run)
    assert ensure_run(run) == first
    MlflowClient(tracking_uri=run.uri).delete_run(first)
    assert ensure_run(run) != first
