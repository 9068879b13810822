"""Jobs on a cluster of fake nodes that grows and shrinks: work asks for nodes, they come, are switched off, go.

The head runs no tasks. Every command is submitted without a working dir, as on nodes whose image holds the package.
"""

import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rehearse import Jobs, rehearse

from evilm.config.stages import STAGES, Sweep
from helpers.commands import files_of, wait_for
from helpers.paths import ROOT, SMALL
from helpers.spot_metadata import AWS_NOTICE, aws_notice, metadata_service
from helpers.workflow import Workflow

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
FRAMES = ["--sampling.shard-clips", "4"]
TOKENIZER = ["--schedule.epochs", "1"]
BUILD = ["--set", "shard_videos.sampling.shard_clips=4", "--set", "train_tokenizer.schedule.epochs=1"]
GPU = ["--cluster.gpus-per-worker", "1"]
EPOCHS = 16
STEPS = EPOCHS * 4  # 64 clips, 16 a step


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    running = Jobs(environment={"PYTHONPATH": "", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"})
    yield running
    running.close()


@pytest.fixture(scope="module")
def workflow(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """The rehearsed workflow, two of whose nodes were switched off: its root and summary."""
    root = tmp_path_factory.mktemp("scaled")
    return root, rehearse(jobs, root, str(SMALL), *BUILD[2:], "--schedule.epochs", str(EPOCHS))


def test_nodes_are_started_for_stages_that_need_them_and_stopped(jobs: Jobs, workflow: Workflow) -> None:
    root, summary = workflow
    assert {stage["state"] for stage in summary["stages"].values()} == {"done"}
    assert jobs.empty()
    print(f"\n{jobs.table()}")
    cut = next(index for index, (_, _, what) in enumerate(jobs.history) if what == "all videos are cut")
    assert any("cpu" in counts for _, counts, _ in jobs.history[:cut])
    assert not any("gpu" in counts for _, counts, _ in jobs.history[:cut])  # no GPU is paid for before it is needed
    assert any("gpu" in counts for _, counts, _ in jobs.history[cut:])
    assert (root / "all" / "summary.json").is_file()


def test_lost_cpu_node_costs_no_clips(workflow: Workflow, ray_local: Any, tmp_path: Path) -> None:
    from evilm.config.presets import defaults
    from evilm.ingest.shard_videos import shard_videos

    corpus = workflow[0] / "corpus"
    undisturbed = defaults("shard_videos", str(SMALL)).override({"sampling.shard_clips": 4})
    places = {"manifest": str(corpus / "manifest.csv"), "videos": str(corpus / "videos"), "out": str(tmp_path / "out")}
    assert shard_videos(undisturbed.model_copy(update=places))["num_clips"] == 104  # type: ignore[arg-type]
    assert files_of(workflow[0] / "frames") == files_of(tmp_path / "out")


def test_lost_gpu_node_costs_no_steps(workflow: Workflow) -> None:
    root, summary = workflow
    assert summary["model"]["steps"] == STEPS
    points = [json.loads(line) for line in (root / "model" / "metrics.jsonl").read_text().splitlines()]
    steps = {point["step"] for point in points if any(name.startswith("train/") for name in point["metrics"])}
    assert steps == set(range(1, STEPS + 1))


def test_metrics_of_the_alerts_are_exported(jobs: Jobs, workflow: Workflow) -> None:
    wanted = set(re.findall(r"\b(?:ray|autoscaler)_\w+", (ROOT / "cluster" / "alerts.yaml").read_text()))
    targets = json.loads((jobs.cluster.folder / "prom_metrics_service_discovery.json").read_text())

    def exported() -> set[str]:
        found = set[str]()
        for address in [address for entry in targets for address in entry["targets"]]:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer,
            ):
                found |= set(re.findall(r"^# TYPE (\S+)", answer.read().decode(), re.MULTILINE))
        return found

    wait_for(lambda: wanted <= exported(), timeout_s=200)  # every node sends its own some seconds after its start
    boards = {
        path.name.split("_")[0] for path in jobs.cluster.folder.glob("session_2*/metrics/grafana/dashboards/*.json")
    }
    assert {"default", "data", "train"} <= boards  # where kuberay/monitoring.yaml says


def test_spot_notice_reaches_a_job_that_keeps_its_last_step(jobs: Jobs, workflow: Workflow, tmp_path: Path) -> None:
    out = tmp_path / "model"
    flags = ["--root", str(workflow[0]), *BUILD, "--out", str(out), "--schedule.epochs", "4000", *GPU]
    job = jobs.submit("pretrain", "--preset", str(SMALL), *flags)
    jobs.until(lambda: (out / "metrics.jsonl").is_file(), job)
    node = next(node for node, kind in jobs.cluster.nodes().items() if kind == "gpu")
    with metadata_service({AWS_NOTICE: aws_notice(seconds=300)}) as cloud:
        watch = [sys.executable, str(ROOT / "cluster" / "spot_watch.py"), "--cloud", "aws", "--metadata", cloud]
        subprocess.run([*watch, "--address", jobs.cluster.address, "--node-id", node], check=True)
    jobs.until(lambda: "will be taken away" in jobs.log(job), job)
    jobs.client.stop_job(job)
    assert jobs.ended(job) == "STOPPED"
    log = jobs.log(job)
    (line,) = [line for line in log.splitlines() if line.startswith("interrupted at step ")]
    step = int(line.split()[3].rstrip(","))
    assert list(out.glob(f"checkpoints/step_{step:08d}*")), line


def test_every_command_runs_as_a_job_without_a_working_dir(jobs: Jobs, workflow: Workflow, tmp_path: Path) -> None:
    root = workflow[0]
    place = {name: str(root / name) for name in ("corpus", "frames", "vocab", "tokenizer", "codes", "model")}
    manifest = ["--manifest", str(root / "corpus" / "manifest.csv")]
    frames = ["--frames", place["frames"]]
    again = ["--root", str(root), *BUILD, "--schedule.epochs", str(EPOCHS), *GPU]
    flags = {  # what stands is reused: the settings are those that made it
        "render_corpus": ["--out", place["corpus"]],
        "shard_videos": [*manifest, "--videos", str(root / "corpus" / "videos"), "--out", place["frames"], *FRAMES],
        "build_vocab": [*manifest, "--out", place["vocab"]],
        "build_items": ["--task", "msvd-qa", "--annotations", f"{place['corpus']}/annotations/msvd-qa", *frames,
                        "--out", str(tmp_path / "items")],
        "train_tokenizer": [*frames, "--vocab", place["vocab"], "--out", place["tokenizer"], *TOKENIZER, *GPU],
        "precompute_codes": [*frames, "--tokenizer", place["tokenizer"], "--out", place["codes"], *GPU],
        "pretrain": again,
        "all": again,
        "finetune": ["--root", str(root), "--task", "hmdb51", "--items.val-share", "0.2", "--schedule.max-steps", "2",
                     "--out", str(tmp_path / "tuned"), *GPU],
        "benchmark": ["--root", str(root)],
        "inspect_shards": [*frames, "--out", str(tmp_path / "inspect")],
        "report": ["--root", str(root)],
    }  # fmt: skip
    assert set(flags) == {name for name, stage in STAGES.items() if not issubclass(stage, Sweep)}
    made = {stage: jobs.submit(stage, "--preset", str(SMALL), *given) for stage, given in flags.items()}
    summaries = {stage: jobs.summary(job) for stage, job in made.items()}
    reused = {stage for stage, summary in summaries.items() if summary.get("reused")}
    assert reused == set(flags) - {"build_items", "finetune", "inspect_shards", "report"}
