"""The Dockerfile without Docker: its own lines, run by a shell in a virtual environment."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from checks.image import check_lock, steps_of

from helpers.paths import ROOT


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment of a shell whose `python` and `pip` are those of an empty venv that sees our packages' folder."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    folder = sysconfig.get_path("purelib", vars={"base": str(home)})
    # A folder named in a .pth file does not get its own .pth files read: the checkout itself stays out of sight.
    (Path(folder) / "ours.pth").write_text(sysconfig.get_path("purelib"))
    pip = home / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{home}/bin/python" -m pip "$@"\n')
    pip.chmod(0o755)
    offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_REQUIRE_VIRTUALENV": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    return kept | offline | {"PATH": f"{home}/bin:{os.environ['PATH']}", "EXTRAS": "", "VIRTUAL_ENV": str(home)}


LOCK = (ROOT / "cluster" / "requirements.txt").read_text()
(TIMM,) = re.findall(r"^timm==(?:.*\\\n)+.*\n", LOCK, re.MULTILINE)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ("", "timm of pyproject.toml is missing; update it"),
        ("timm==1.0.0 --hash=sha256:0\n", "timm 1.0.0 is "),
        (TIMM.partition(" ")[0] + "\n", "has no digest"),
    ],
    ids=["missing", "another version", "without a digest"],
)
def test_packages_without_pin_or_digest_are_reported(changed: str, problem: str) -> None:
    assert check_lock(LOCK) == []
    (found,) = check_lock(LOCK.replace(TIMM, changed))
    assert problem in found


@pytest.mark.long
def test_image_contains_the_whole_package(tmp_path: Path, environment: dict[str, str]) -> None:
    work = tmp_path / "evilm-image"
    work.mkdir()
    ran = 0
    for word, rest in steps_of((ROOT / "cluster" / "Dockerfile").read_text()):
        words = [w for w in rest.split() if not w.startswith("--")]
        if word == "COPY":
            for name in words[:-1]:
                source, target = ROOT / name, work / (name if words[-1] == "./" else words[-1])
                target.parent.mkdir(exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(source, target)
        elif word == "RUN" and not rest.startswith(("sudo apt-get", "pip install --require-hashes")):
            # The others install the image's system and gigabytes of packages, which are here already.
            done = subprocess.run(["bash", "-ec", rest], cwd=work, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            ran += 1
    assert ran == 2
    told = "import evilm, evilm.config.presets as p; print(evilm.__file__); p.defaults('pretrain', 'tiny')"
    where = subprocess.run(["python", "-c", told], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert where.stdout.startswith(str(tmp_path / "venv")), where.stderr
    assert not Path(sys.prefix, "evilm").exists()
