"""The SQLite store of a root that was moved or copied: its files are found, its runs go on."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from evilm.config.stages import BuildVocab
from evilm.errors import ConfigError
from evilm.tracking.local_store import relocate, store_beside
from evilm.tracking.mlflow_run import close_run, ensure_run, is_closed
from evilm.tracking.run_file import read_run_file
from helpers.tracked_output import claimed, store_client


def _record(config: BuildVocab, root: Path) -> None:
    run = claimed(config, "build_vocab", str(root / "vocab"))
    (root / "vocab" / "picture.png").write_bytes(b"png")
    close_run(run, config, {"num_words": 3}, {"figures": [str(root / "vocab" / "picture.png")]})
    assert is_closed(run)


def _artifacts(root: Path, target: Path) -> tuple[Any, list[str]]:
    """The run of the root's output, and where its artifacts were loaded from."""
    client = store_client(f"sqlite:///{root / 'mlflow.db'}")
    run = client.get_run(read_run_file(str(root / "vocab"))["run_id"])
    target.mkdir()
    loaded = Path(client.download_artifacts(run.info.run_id, "figures/picture.png", str(target)))
    assert loaded.read_bytes() == b"png"
    return run, [item.path for item in client.list_artifacts(run.info.run_id)]


@pytest.mark.parametrize("is_moved", [True, False])
def test_moved_or_copied_root_keeps_its_artifacts_and_runs(config: BuildVocab, tmp_path: Path, is_moved: bool) -> None:
    old, new = tmp_path / "old root", tmp_path / "elsewhere" / "new"
    _record(config, old)
    run_id = read_run_file(str(old / "vocab"))["run_id"]
    new.parent.mkdir()
    (shutil.move if is_moved else shutil.copytree)(str(old), str(new))
    run = claimed(config, "build_vocab", str(new / "vocab"))
    assert is_closed(run)
    assert ensure_run(run) == run_id, "it goes on"
    moved, names = _artifacts(new, tmp_path / "loaded")
    assert set(names) == {"config.yaml", "summary.json", "figures"}
    assert moved.info.artifact_uri.startswith((new / "mlruns").as_uri())
    second = claimed(config, "build_vocab", str(new / "more"))
    close_run(second, config, {"num_words": 4}, {})
    assert (new / "mlruns" / ensure_run(second)).is_dir()
    if not is_moved:
        shutil.rmtree(new)
        original, _ = _artifacts(old, tmp_path / "original")
        assert original.info.artifact_uri.startswith((old / "mlruns").as_uri())


def test_logged_and_registered_models_move_along(config: BuildVocab, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    _record(config, old)
    client = store_client(f"sqlite:///{old / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evilm")
    assert experiment
    model = client.create_logged_model(experiment.experiment_id, "evilm")
    client.create_registered_model("evilm")
    client.create_model_version("evilm", str(model.artifact_location))
    shutil.move(str(old), str(new))
    uri = f"sqlite:///{new / 'mlflow.db'}"
    relocate(uri)
    moved, here = store_client(uri), (new / "mlruns").as_uri()
    assert str(moved.get_logged_model(model.model_id).artifact_location).startswith(here)
    assert str(moved.get_model_version("evilm", "1").source).startswith(here)


def test_root_behind_a_link_and_files_of_other_places_stay(config: BuildVocab, tmp_path: Path) -> None:
    root, link = tmp_path / "root", tmp_path / "link"
    _record(config, root)
    client = store_client(f"sqlite:///{root / 'mlflow.db'}")
    other = client.create_experiment("other", "s3://bucket/mlruns")
    before = {each.experiment_id: each.artifact_location for each in client.search_experiments()}
    link.symlink_to(root)
    relocate(f"sqlite:///{link / 'mlflow.db'}")
    assert {each.experiment_id: each.artifact_location for each in client.search_experiments()} == before
    assert before[other] == "s3://bucket/mlruns"


def test_folder_that_no_address_can_name_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a '\?' in its name, which ends the address of its MLflow store"):
        store_beside(str(tmp_path / "a?b" / "vocab"))
    assert store_beside(str(tmp_path / "a b" / "vocab")) == f"sqlite:///{tmp_path}/a b/mlflow.db"
