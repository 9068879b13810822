"""What the package needs can be installed on arm64 too."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from helpers.paths import ROOT


def _needed() -> list[str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_decord_is_not_required_on_arm64() -> None:
    needed = [Requirement(text) for text in _needed()]
    arm = {"platform_machine": "aarch64", "sys_platform": "linux", "python_version": "3.11", "extra": ""}
    names = {each.name for each in needed if each.marker is None or each.marker.evaluate(arm)}
    assert {"av", "torch", "ray"} <= names
    assert "decord" not in names
    (decord,) = (each for each in needed if each.name == "decord")
    assert decord.marker is not None
    assert decord.marker.evaluate(arm | {"platform_machine": "x86_64"})


@pytest.mark.long
def test_all_dependencies_have_wheels_for_arm64(tmp_path: Path) -> None:
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
