"""The whole workflow on a real Ray: built, reused, refused, killed and resumed."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any, cast

import pytest
import s3fs

from evilm.config.presets import defaults
from evilm.config.stages import TrainTokenizer
from evilm.errors import CollapseError, ConfigError, EvilmError, ManifestError, ShardError
from evilm.model.evilm_model import EViLMModel
from evilm.objectives.step_macs import step_macs
from evilm.tasks.pretrain import pretrain
from evilm.tasks.train_tokenizer import train_tokenizer
from evilm.tracking.metrics_file import read_points
from helpers.commands import kill, start, wait_for
from helpers.gates import Gate
from helpers.paths import SMALL
from helpers.workflow import Workflow, losses_and_scores, small_pretrain


def test_workflow_leaves_every_artifact(small_workflow: Workflow) -> None:
    root, summary = small_workflow
    assert summary["steps"] == 20
    assert set(summary["inputs"]) == {"frames", "codes", "vocab", "tokenizer"}
    for name in ("corpus/manifest.csv", "frames/manifest.json", "vocab/vocab.txt", "tokenizer/config.json",
                 "model/model.safetensors", "model/config.json", "model/vocab/vocab.txt", "model/losses.png",
                 "model/summary.json", f"codes/{summary['inputs']['tokenizer']}/manifest.json"):  # fmt: skip
        assert (root / name).is_file(), name
    pickles = [p for p in (root / "model").rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".ckpt")]
    assert not [p for p in pickles if "checkpoints/step_" in p.as_posix() or p.parent == root / "model"]
    logged = losses_and_scores(root / "model")[20]
    for name in ("mlm", "vtm", "mvm"):
        assert {f"train/{name}_loss", f"train/{name}_accuracy", f"val/{name}_loss", f"val/{name}_accuracy"} <= set(
            logged
        )
    assert {"train/lr", "train/grad_norm", "val/code_usage", "val/mvm_chance"} <= set(logged)


def test_every_command_is_a_run_in_mlflow(small_workflow: Workflow) -> None:
    from mlflow import MlflowClient

    root, summary = small_workflow
    client = MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evilm")
    assert experiment
    for stage in ("render_corpus", "shard_videos", "build_vocab", "train_tokenizer", "precompute_codes", "pretrain"):
        wanted = f"tags.`evilm.stage` = '{stage}' AND tags.`evilm.out` LIKE '{root}%'"
        (run,) = client.search_runs([experiment.experiment_id], wanted)
        assert run.info.status == "FINISHED"
    assert run.data.tags["evilm.input.codes"] == summary["inputs"]["codes"]
    made_from = {item.dataset.name: item.dataset for item in run.inputs.dataset_inputs}
    assert {name: item.digest for name, item in made_from.items()} == summary["inputs"]
    assert str(root / "frames") in made_from["frames"].source
    assert "MLFLOW_TRACKING_URI" not in os.environ, "the next training of this process is tracked beside its own output"
    assert len(client.get_metric_history(run.info.run_id, "train/mvm_loss")) == 20
    times = {"clips_per_s", "data_wait_ratio", "eta_s", "memory_gib", "attempt", "workers", "mfu"}
    times |= {f"step_{phase}_s" for phase in ("wait", "forward", "backward", "optimizer")}
    assert {f"time/{name}" for name in times} <= set(run.data.metrics)


def test_mfu_is_flops_of_the_clips_over_the_peak(small_workflow: Workflow) -> None:
    root, _ = small_workflow
    logged = [point["metrics"] for point in read_points(root / "model" / "metrics.jsonl")]
    shares = [metrics["time/mfu"] / metrics["time/clips_per_s"] for metrics in logged if "time/mfu" in metrics]
    assert shares == pytest.approx([shares[0]] * 20), "the peak is measured once"
    macs = sum(step_macs(EViLMModel.from_pretrained(str(root / "model")), small_pretrain(root).objectives, 20))
    assert 1e8 < 6 * macs / shares[0] < 1e14, "FLOPs per second that a machine's CPU may reach"


def test_repeated_command_reuses_everything(small_workflow: Workflow) -> None:
    root, summary = small_workflow
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and "mlflow" not in p.name}
    again = pretrain(small_pretrain(root))
    assert again == summary | {"reused": True}
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_other_settings_for_a_finished_model_are_rejected(small_workflow: Workflow) -> None:
    root, _ = small_workflow
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.001 there, 0\.01 now.*--overwrite"):
        pretrain(small_pretrain(root, **{"optim.lr": 0.01}))
    with pytest.raises(ConfigError, match=r"precision: 'fp32' there, 'bf16' now"):
        pretrain(small_pretrain(root, **{"cluster.precision": "bf16"}))


@pytest.mark.long
def test_same_seed_gives_the_same_losses(small_workflow: Workflow, tmp_path: Path) -> None:
    root, _ = small_workflow
    pretrain(small_pretrain(root, out=str(tmp_path / "again")))
    assert losses_and_scores(tmp_path / "again") == losses_and_scores(root / "model")


@pytest.mark.long
@pytest.mark.faults
def test_unreachable_tracking_server_does_not_stop_a_run(small_workflow: Workflow, tmp_path: Path) -> None:
    root, _ = small_workflow
    values = {"tracking.uri": "http://127.0.0.1:9", "schedule.seed": 1, "schedule.max_steps": 2}  # nobody listens there
    assert pretrain(small_pretrain(root, out=str(tmp_path / "other"), **values))["steps"] == 2
    assert sorted(losses_and_scores(tmp_path / "other")) == [1, 2], "the metrics are kept"
    assert losses_and_scores(tmp_path / "other")[1] != losses_and_scores(root / "model")[1], (
        "another seed, other losses"
    )


@pytest.mark.long
@pytest.mark.faults
def test_killed_pretraining_ends_with_the_same_model(
    small_workflow: Workflow, s3_bucket: str, store_gate: Gate, tmp_path: Path
) -> None:
    root, out = small_workflow[0], tmp_path / "model"
    places = {name: str(root / name) for name in ("codes", "vocab", "tokenizer")}
    places |= {"frames": f"{s3_bucket}/frames", "out": str(out)}
    s3fs.S3FileSystem().put(f"{root}/frames/", f"{s3_bucket}/frames/", recursive=True)
    store_gate.shut(".parquet", once=lambda: max(losses_and_scores(out), default=0) >= 5)
    flags = [*(f"--{name}={place}" for name, place in places.items()), "--tracking.no-log-model"]
    stage = start("pretrain", "--preset", str(SMALL), *flags)
    wait_for(store_gate.holds, stage)
    twice = start("pretrain", "--preset", str(SMALL), *flags)  # by accident
    _, said = twice.communicate(timeout=300)
    assert twice.returncode == 1
    assert said.decode().splitlines()[-1].startswith(f"error: {out} is being written by process {stage.pid} on ")
    kill(stage, and_workers=True)
    store_gate.open()
    assert not (out / "summary.json").exists()
    assert 5 <= max(losses_and_scores(out)) < 20
    summary = pretrain(small_pretrain(root, **places, **{"tracking.log_model": False}))
    unbroken = losses_and_scores(root / "model")
    assert {step: unbroken[step] for step in losses_and_scores(out)} == losses_and_scores(out)
    assert sorted(losses_and_scores(out)) == list(range(1, 21))
    assert summary["val"] == json.loads((root / "model" / "summary.json").read_text())["val"]
    assert (out / "model.safetensors").read_bytes() == (root / "model" / "model.safetensors").read_bytes()


@pytest.mark.long
def test_random_codebook_collapses_and_the_message_says_what_to_do(small_workflow: Workflow, tmp_path: Path) -> None:
    """The encoder of preset `tiny`, trained from scratch with the paper's random codebook; about 4 codes are left."""
    root, _ = small_workflow
    out, tiny = tmp_path / "tokenizer", defaults("train_tokenizer", "tiny").model_dump()["arch"]
    sizes = [f"{part}_{size}" for part in ("encoder", "decoder") for size in ("dim", "layers", "heads")]
    values = {f"arch.{name}": tiny[name] for name in sizes} | {"schedule.epochs": 4, "optim.lr": 0.01}
    codebook = {"num_codes": 64, "code_dim": 32, "init": "random", "revive_below": 0.0}
    values |= {f"arch.codebook.{name}": value for name, value in codebook.items()}
    places = {"frames": str(root / "frames"), "vocab": str(root / "vocab"), "out": str(out)}
    config = defaults("train_tokenizer", str(SMALL)).override(values | places | {"tracking.enabled": False})
    with pytest.raises(CollapseError) as caught:
        train_tokenizer(cast(TrainTokenizer, config))
    said = str(caught.value)
    assert said.startswith(f"{out}, split val: the tokenizer has collapsed, it uses ")
    assert " of its 64 codes for 256 regions; 8 or more are accepted (arch.codebook.min_usage = 0.01). " in said
    assert "with --overwrite --arch.codebook.init kmeans --arch.codebook.revive-below 0.1, or more clips" in said


def test_codes_of_another_tokenizer_grid_or_frames_are_rejected(small_workflow: Workflow, tmp_path: Path) -> None:
    root, _ = small_workflow
    places = {name: str(root / name) for name in ("frames", "codes", "vocab", "tokenizer")}
    from evilm.model.tokenizers.semantic_vq import VideoTokenizer

    other = VideoTokenizer.from_pretrained(places["tokenizer"])
    other.quantizer.codebook.data[0] += 1
    other.save_pretrained(str(tmp_path / "tokenizer"))
    with pytest.raises(ShardError, match=other.fingerprint()):
        pretrain(small_pretrain(root, out=str(tmp_path / "m"), **places | {"tokenizer": str(tmp_path / "tokenizer")}))
    with pytest.raises(ShardError, match=r"grid|regions"):
        pretrain(small_pretrain(root, out=str(tmp_path / "m"), **places | {"arch.input_px": 96}))
    from evilm.config.stages import ShardVideos
    from evilm.ingest.shard_videos import shard_videos

    build = ShardVideos.model_validate(dict(small_pretrain(root).shard_videos))
    corpus = {"manifest": str(root / "corpus" / "manifest.csv"), "videos": str(root / "corpus" / "videos")}
    fewer = build.override({**corpus, "out": str(tmp_path / "frames"), "sampling.jpeg_quality": 50, "limit": 30})
    shard_videos(fewer)
    with pytest.raises(ShardError, match="frames"):
        pretrain(small_pretrain(root, out=str(tmp_path / "m"), **places | {"frames": str(tmp_path / "frames")}))


def test_inputs_that_belong_together_must_be_given_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--manifest and --videos go together"):
        pretrain(small_pretrain(tmp_path, manifest="x.csv"))
    with pytest.raises(ConfigError, match="name --frames and --tokenizer"):
        pretrain(small_pretrain(tmp_path, codes="x"))


def test_a_folder_of_tars_needs_no_videos(tmp_path: Path, ray_local: Any) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "00000.tar", "w"):
        pass
    with pytest.raises(EvilmError) as caught:
        pretrain(small_pretrain(tmp_path / "run", manifest=str(tmp_path / "tars")))
    assert "--videos" not in str(caught.value)


def test_column_names_reach_sharding_and_vocabulary(tmp_path: Path, ray_local: Any) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("id,text\n1,a red star\n")
    values = {"manifest": str(table), "videos": str(tmp_path), "columns.videoid": "id"}
    with pytest.raises(ManifestError, match="'name'"):  # the other column is still unknown
        pretrain(small_pretrain(tmp_path / "run", **values))
    with pytest.raises(ShardError, match="missing_file"):  # both are found now, and nothing was locked; no such video
        pretrain(small_pretrain(tmp_path / "run", **values | {"columns.caption": "text"}))
