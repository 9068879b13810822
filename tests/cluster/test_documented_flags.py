"""Flags that README, docs, presets and messages show exist, and their commands are understood."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from checks.commands import check_commands

from evilm.config.base import flatten
from evilm.config.flags import make_parser
from evilm.config.stages import STAGES
from helpers.paths import ROOT

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*DOCS, *sorted((ROOT / "evilm").rglob("*.yaml")), *sorted((ROOT / "evilm").rglob("*.py"))]
ABOUT_COMMANDS = ("README.md", "data.md", "data_sources.md", "sweeps.md", "tracking.md")
OF_OTHERS = {"--constraint", "--editable", "--shm-size", "--working-dir", "--ranks", "--stages", "--plan-rows"}
"""Flags of `ray job submit` and of benchmarks in the documents about our commands."""


@functools.cache
def _flags() -> set[str]:
    return {flag for stage, command in STAGES.items() for flag in make_parser(stage, command())._option_string_actions}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_in_the_documents_are_understood(path: Path, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"  # of a sweep that a document has run
    best.write_text("pretrain: {}\n")
    assert check_commands(path.read_text().replace("runs/sweeps/lr_batch/best.yaml", str(best))) == []


def _shown(paths: Iterable[Path], pattern: str) -> list[tuple[str, str]]:
    found = [(path.name, name) for path in paths for name in re.findall(pattern, path.read_text())]
    assert len(found) > 10
    return found


def test_flags_of_sections_exist_wherever_they_are_shown() -> None:
    known = {*_flags(), "--columns.*", "--augment.*"}
    shown = _shown(TEXTS, r"(?<![\w-])--[a-z][\w-]*\.[\w.*-]*[\w*]")
    assert [(name, flag) for name, flag in shown if flag.replace("_", "-") not in known] == []


def test_flags_in_documents_about_the_commands_exist() -> None:
    shown = _shown((path for path in DOCS if path.name in ABOUT_COMMANDS), r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w.-])")
    assert [(name, flag) for name, flag in shown if flag not in _flags() | OF_OTHERS] == []


def test_settings_shown_with_set_exist() -> None:
    known = {name for command in STAGES.values() for name in flatten(command().model_dump())}
    files = [path for path in TEXTS if path.name != "cost.md"]  # whose --set is that of benchmarks/cost.py
    files += [*(ROOT / "pipelines").glob("*.py"), *(ROOT / "cluster").rglob("*.yaml")]
    shown = _shown(files, r"--set[ =]([a-z_]+\.[a-z_.]+)=")
    assert [(name, setting) for name, setting in shown if setting not in known] == []
