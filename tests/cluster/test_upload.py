"""What `ray job submit --working-dir .` sends: all that commands need, nothing that people keep beside the code."""

import shutil
import zipfile
from pathlib import Path

from ray._private.runtime_env.packaging import create_package

from helpers.paths import ROOT

MIB = 2**20


def _names(folder: Path, package: Path, gitignore: bool) -> set[str]:
    """Files that Ray would send from a folder."""
    create_package(str(folder), package, include_gitignore=gitignore, excludes=[".git", ".venv", "venv", "__pycache__"])
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_upload_is_small_and_complete(tmp_path: Path) -> None:
    names = _names(ROOT, tmp_path / "package.zip", gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < 10 * MIB  # of the 100 that Ray takes
    sources = [*(ROOT / "evilm").rglob("*.py"), *(ROOT / "evilm").rglob("*.yaml"), *(ROOT / "pipelines").glob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in sources} <= names


def test_outputs_are_left_out_of_the_upload_without_git(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    (folder / "evilm" / "data").mkdir(parents=True)
    shutil.copy(ROOT / ".rayignore", folder)
    kept = ["evilm/dataloader/loader.py", "pipelines/pretrain.py", "evilm/presets/tiny.yaml", "mine.yaml", "clips.csv"]
    left = [
        "runs/demo/frames/a.parquet",
        "mlruns/1/meta.yaml",
        "mlflow.db",
        "data/a.csv",
        "videos/a.mp4",
        "a.safetensors",
    ]
    left += [".venv/bin/python", "evilm/__pycache__/a.pyc", "shards/train-00000.tar", ".git/HEAD"]
    videos = ("MP4", "mov", "MOV", "m4v", "ts", "flv", "webm", "mkv", "avi")
    left += [f"clips/a.{kind}" for kind in (*videos, "jpg", "JPG", "jpeg", "zip", "tar.gz", "tgz", "distcp")]
    for name in kept + left:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert _names(folder, tmp_path / "package.zip", gitignore=False) - {".rayignore"} == set(kept)
