"""Signatures, users and passwords: what is stored of a URL, and that a whole workflow writes none of them."""

import csv
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement

from evilm.config.secrets import public_data, public_text, public_uri, unsigned, unsigned_text
from evilm.console import log_to_console
from helpers.commands import ROOT, start
from helpers.gates import Gate, serve
from helpers.mlflow_server import Server
from helpers.video_files import write_video


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://u:p@h.org/a.mp4?id=7&X-Amz-Signature=x&X-Amz-Date=1#t", "https://h.org/a.mp4?id=7"),
        ("https://h/a?sv=1&sig=x&v=2", "https://h/a?v=2"),
        ("https://h/a?key=x&api_key=y&access_token=z&q=1", "https://h/a?q=1"),
        ("videos/a.mp4?token=1", "videos/a.mp4?token=1"),
    ],
)
def test_a_url_is_kept_without_what_signs_it(url: str, stored: str) -> None:
    assert unsigned(url) == stored
    assert unsigned_text(f"see {url} or not") == f"see {stored} or not"


def test_what_is_shown_has_no_query_either() -> None:
    assert public_uri("s3://k:s@b/x?versionId=1") == "s3://b/x"
    assert public_text("at mysql://u:p@h/db?x=1: no") == "at mysql://h/db no"
    assert public_data({"a": ["http://u:p@h/x"], "b": 3}) == {"a": ["http://h/x"], "b": 3}


def test_log_lines_hold_none(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("evilm")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    log_to_console()
    try:
        logger.warning("cannot reach %s", "http://me:hidden-one@h/x?sig=hidden-two")
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True
    assert "cannot reach http://h/x" in capsys.readouterr().err


def _needed() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_all_that_is_needed_has_wheels_for_arm64() -> None:
    needed = [Requirement(text) for text in _needed()]
    arm = {"platform_machine": "aarch64", "sys_platform": "linux", "python_version": "3.11", "extra": ""}
    names = {each.name for each in needed if each.marker is None or each.marker.evaluate(arm)}
    assert {"av", "torch", "ray"} <= names
    assert "decord" not in names
    (decord,) = (each for each in needed if each.name == "decord")
    assert decord.marker is not None
    assert decord.marker.evaluate(arm | {"platform_machine": "x86_64"})


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
                place = f"http://me:masked-password@{host}/{number}.mp4?X-Amz-Signature=masked-signature&n={number}"
                note = "https://you:masked-password@h/x?api_key=masked-signature"
                split = "val" if number % 5 == 0 else "train"
                table.writerow([f"c{number}", place, f"clip {number} of a thing", split, note])
        yield tmp_path / "clips.csv"


@pytest.mark.long
def test_a_whole_workflow_writes_no_secret_anywhere(manifest: Path, tmp_path: Path) -> None:
    server, root = Server(tmp_path), tmp_path / "root"
    ray = Path(tempfile.mkdtemp(prefix="ev-"))  # paths of sockets must be short
    server.start()
    try:
        uri = server.uri.replace("://", "://me:masked-password@")
        small = "build.train_tokenizer.schedule.batch_clips=8 build.shard_videos.fetch.urls=True"
        flags = [f"--{flag.replace('_', '-')}" for flag in small.split()]
        process = start(
            "pretrain", "--preset", str(ROOT / "tests" / "small.yaml"), f"--root={root}", f"--manifest={manifest}",
            "--build.shard-videos.fetch.allow-private", *[flag.replace("=True", "") for flag in flags],
            "--schedule.epochs=1", MLFLOW_TRACKING_URI=uri, RAY_TMPDIR=str(ray),
        )  # fmt: skip
        printed, said = process.communicate(timeout=900)
    finally:
        server.kill()
    assert process.returncode == 0, said.decode()[-3000:]
    assert "2 of 42 rows quarantined" in said.decode()
    assert b"masked-" not in printed + said
    looked_at, found = 0, []
    for path in (*tmp_path.rglob("*"), *ray.rglob("*")):
        if path.is_file() and not path.is_relative_to(manifest.parent / "web") and path != manifest:
            looked_at += 1
            if b"masked-" in path.read_bytes():
                found.append(str(path))
    shutil.rmtree(ray)
    print(f"{looked_at} files: {found or 'no secret in any'}")
    assert looked_at > 50
    assert found == []


@pytest.mark.long
def test_an_arm64_machine_can_install(tmp_path: Path) -> None:
    """The resolver finds wheels of all that is needed; nothing is downloaded but what tells it so."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-"]
    command += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", f"--target={tmp_path}"]
    command += [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (17, 26, 27, 28, 31, 34)]
    needed = [text for text in _needed() if not text.startswith("decord")]
    done = subprocess.run(
        [*command, "--platform=manylinux2014_aarch64", *needed], capture_output=True, text=True, check=False
    )
    if done.returncode and re.search(r"new connection|name resolution|service not known", done.stderr):
        pytest.skip("no package registry can be reached, which says nothing of the wheels")
    assert done.returncode == 0, done.stderr[-2000:]
