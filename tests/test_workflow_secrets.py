"""A whole workflow on signed URLs writes none of their secrets anywhere."""

import csv
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from helpers.commands import start
from helpers.gates import Gate, serve
from helpers.mlflow_server import Server
from helpers.paths import ROOT
from helpers.video_files import write_video


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Path]:
    """Clips behind signed URLs with users and passwords; two of them are gone, and say so in errors."""
    web = tmp_path / "web"
    web.mkdir()
    for number in range(40):
        write_video(web / f"{number}.mp4", num_frames=6, first_picture=number)
    with serve(web, Gate()) as url:
        host = urlsplit(url).netloc
        with (tmp_path / "clips.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["videoid", "contentUrl", "name", "split", "note"])
            for number in range(42):
                place = f"http://me:planted-password@{host}/{number}.mp4?X-Amz-Signature=planted-signature&n={number}"
                note = "https://you:planted-password@h/x?api_key=planted-signature"
                split = "val" if number % 5 == 0 else "train"
                table.writerow([f"c{number}", place, f"clip {number} of a thing", split, note])
        yield tmp_path / "clips.csv"


@pytest.mark.long
def test_whole_workflow_writes_no_secret_anywhere(manifest: Path, tmp_path: Path) -> None:
    server, root = Server(tmp_path), tmp_path / "root"
    ray = Path(tempfile.mkdtemp(prefix="ev-"))  # paths of sockets must be short
    server.start()
    try:
        uri = server.uri.replace("://", "://me:planted-password@")
        settings = ("train_tokenizer.schedule.batch_clips=8", "shard_videos.fetch.urls=true")
        process = start(
            "pretrain", "--preset", str(ROOT / "tests" / "small.yaml"), f"--root={root}", f"--manifest={manifest}",
            "--set=shard_videos.fetch.allow_private=true", *[f"--set={setting}" for setting in settings],
            "--schedule.epochs=1", MLFLOW_TRACKING_URI=uri, RAY_TMPDIR=str(ray),
        )  # fmt: skip
        printed, said = process.communicate(timeout=900)
    finally:
        server.kill()
    assert process.returncode == 0, said.decode()[-3000:]
    assert "2 of 42 rows quarantined" in said.decode()
    assert b"planted-" not in printed + said
    looked_at, found = 0, []
    for path in (*tmp_path.rglob("*"), *ray.rglob("*")):
        if path.is_file() and not path.is_relative_to(manifest.parent / "web") and path != manifest:
            looked_at += 1
            if b"planted-" in path.read_bytes():
                found.append(str(path))
    shutil.rmtree(ray)
    print(f"{looked_at} files: {found or 'no secret in any'}")
    assert looked_at > 50
    assert found == []
