"""Commands and messages quoted in the docs exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import ray
import yaml
from checks.commands import check_commands, check_files, commands_in

from helpers.paths import ROOT

DOCS = [ROOT / "docs" / name for name in ("cluster.md", "operations.md", "sweeps.md")]
STAGES = sorted([*(ROOT / "pipelines").glob("*.py"), *(ROOT / "tune").glob("*.py")])
_MESSAGES = {  # part of a message in operations.md: the file it comes from, ours, Ray's or aiohttp's
    "no Ray cluster answers at RAY_ADDRESS": "evilm/cluster.py",
    "cannot start Ray on this machine": "evilm/cluster.py",
    "check RAY_ADDRESS and RAY_AUTH_MODE": "evilm/cluster.py",
    "is in use, perhaps by another cluster: use another": "cluster/local.py",
    "the head at ": "cluster/local.py",
    "cannot store a token: ": "cluster/local.py",
    "Ray did not start on ": "cluster/slurm.sh",
    "was made with other settings": "evilm/io/outputs.py",
    "check endpoint and credentials": "evilm/io/retries.py",
    "trying again in": "evilm/io/retries.py",
    "no space left for": "evilm/io/retries.py",
    "rows were quarantined": "evilm",
    "max_failed_share = ": "evilm",
    "the process working on": "evilm/jobs/commits.py",
    "is being written by": "evilm",
    "was taken over by": "evilm",
    " shards failed, ": "evilm",
    "cannot be repaired: the rebuilt file differs": "evilm/jobs/commits.py",
    "training failed: ": "evilm/train/launch.py",
    "run the same command again to continue": "evilm/train/launch.py",
    "is not finite": "evilm/train",
    "; checkpoint saved at step ": "evilm/train/preemption.py",
    "the run continues": "evilm/tracking/mlflow_calls.py",
    "will be taken away": "evilm/train/preemption.py",
    "gave a finite value of": "evilm/tasks/training_run.py",
    "is not an evaluation metric": "evilm/train/validation.py",
    "and can't be continued to step": "evilm/tasks/training_run.py",
    "an E-ViLM model": "evilm/model/pretrained.py",
    "the tokenizer has collapsed, it uses": "evilm/model/tokenizers/collapse.py",
    "Authentication required: ": "ray/_private/authentication/http_token_authentication.py",
    "Unauthorized: Missing authentication token": "ray/_private/authentication/http_token_authentication.py",
    "Authentication failed: ": "ray/_private/authentication/http_token_authentication.py",
    "Forbidden: Invalid authentication token": "ray/_private/authentication/http_token_authentication.py",
    "Token authentication is enabled but no authentication token was found": (
        "ray/_private/authentication/authentication_constants.py"
    ),
    "Maximum request body size ": "aiohttp/web_exceptions.py",
    "Job has not started yet.": "ray/dashboard/modules/job/common.py",
    "It may be waiting for resources": "ray/dashboard/modules/job/common.py",
    "There are tasks with infeasible resource requests": "ray/core/src/ray/gcs/gcs_server",
    "Failed to launch": "ray/autoscaler/v2/instance_manager/node_provider.py",
    "NodeTerminated": "ray/autoscaler/v2/utils.py",
    "Pending Demands": "ray/autoscaler/v2/utils.py",
}


def _blocks(path: Path) -> Iterator[str]:
    yield from re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)


def _ray_commands() -> Iterator[tuple[str, list[str]]]:
    """Each call of `ray` in docs and cluster files, without what comes behind `--`."""
    texts = [block for path in DOCS for block in _blocks(path)]
    for path in (ROOT / "cluster").rglob("*.yaml"):
        texts.append("\n".join(line.lstrip(" #") for line in path.read_text().splitlines()))
    for text in texts:
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            found = re.match(r"(?:[A-Z_]+=\S+ )*ray ([a-z].*)", line)
            if found:
                words = shlex.split(found[1].split(" -- ")[0].split(" #")[0].split("&&")[0])
                yield line, words


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_and_files_in_the_docs_exist(path: Path, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"  # of the sweep that the docs have run
    best.write_text("pretrain: {}\n")
    text = path.read_text().replace("runs/sweeps/lr_batch/best.yaml", str(best))
    assert check_commands(text) == []
    assert check_files(text) == []
    assert list(commands_in(text))


@pytest.mark.parametrize("path", STAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_docstring_examples_of_commands_parse(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "space.yaml").write_text("optim.lr: {low: 1e-5, high: 1e-3, log: true}\n")
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"{path.parent.name}/{path.stem}" in {place for place, _ in commands_in(said)}
    monkeypatch.chdir(tmp_path)  # where a space file lies
    assert [problem for problem in check_commands(said) if "a range has no grid" not in problem] == []


def test_ray_commands_and_options_in_the_docs_exist() -> None:
    from ray.scripts.scripts import cli

    seen = 0
    for line, words in _ray_commands():
        command: click.Command = cli
        while isinstance(command, click.Group):
            name = words.pop(0)
            assert name in command.commands, line
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        for word in words:
            if word.startswith("-") and word != "-":
                assert word.split("=")[0] in options, f"{line}: {word}"
        seen += 1
    assert seen > 15


@pytest.mark.parametrize(("message", "source"), _MESSAGES.items())
def test_quoted_messages_exist_in_the_source(message: str, source: str) -> None:
    assert message in " ".join((ROOT / "docs" / "operations.md").read_text().split())
    ours = ROOT / source
    place = ours if ours.exists() else Path(str(ray.__file__)).parents[1] / source
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert any(message.encode() in file.read_bytes() for file in files)


def test_every_quoted_message_is_checked() -> None:
    tables = re.findall(
        r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / "docs" / "operations.md").read_text(), re.M
    )
    quoted = [row.split(" | ")[0] for table in tables for row in table.splitlines() if row.startswith("| `")]
    assert len(quoted) > 10
    assert [cell for cell in quoted if not any(message in cell for message in _MESSAGES)] == []


def test_every_alert_is_documented() -> None:
    rules = yaml.safe_load((ROOT / "cluster" / "alerts.yaml").read_text())["groups"][0]["rules"]
    text = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules:
        assert f"`{rule['alert']}`" in text
