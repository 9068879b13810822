"""The examples of docs/model.md and docs/downstream.md run as they stand, on small models."""

import re
from pathlib import Path
from typing import Any

import pytest

import evilm
from helpers.paths import ROOT
from helpers.public_models import CAPTIONS, noise, random_evilm, tuned_evilm
from helpers.video_files import write_video

KINDS = {
    "answer": ("answer", ("red", "blue", "a star")),
    "choose": ("choice", ()),
    "classify": ("label", ("run", "jump")),
    "similarity": ("retrieval", ()),
    "retrieval_vectors": ("retrieval", ()),
}
"""Kind and labels of the model that each method needs."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the examples name."""
    random_evilm(max_text_len=40).save_pretrained(tmp_path / "runs" / "demo" / "model")
    tuned_evilm(*KINDS["answer"]).save_pretrained(tmp_path / "runs" / "demo" / "msvd-qa-model")
    write_video(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(document: str, heading: str) -> list[str]:
    """The Python code below a heading."""
    text = (ROOT / "docs" / document).read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0] if heading else text
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_examples_of_a_pretrained_model_run(folder: Path, capsys: pytest.CaptureFixture) -> None:
    first, masks = blocks("model.md", "In Python")
    known: dict[str, Any] = {"videos": [noise(seed=k) for k in range(3)], "captions": CAPTIONS}
    masks = masks.split("\nfor codes")
    exec(first.split("model.match(")[0].replace('device="cuda"', 'device="cpu"'), known)
    exec(masks[0], known)
    exec("model.match(" + first.split("model.match(", 1)[1], known)
    exec("for codes" + masks[1], known)
    assert len(capsys.readouterr().out.splitlines()) == 6, "two regions of the first frame and four of the last"
    assert evilm.EViLM.from_pretrained("elsewhere").config == known["model"].config


def test_examples_of_fine_tuned_models_run(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (block,) = blocks("model.md", "A fine-tuned model in Python")
    known: dict[str, Any] = {"videos": [noise()], "captions": CAPTIONS}
    calls = re.split(r"^model\.", block, flags=re.MULTILINE)[1:]
    assert {call.split("(")[0] for call in calls} == set(KINDS)
    for call in calls:
        known["model"] = tuned_evilm(*KINDS[call.split("(")[0]])
        exec(f"model.{call}", known)
    (block,) = (block for block in blocks("downstream.md", "") if "from_pretrained" in block)
    exec(block, {})
    assert "'a star'" in capsys.readouterr().out


def test_example_of_transformers_runs(folder: Path) -> None:
    (block,) = blocks("model.md", "In transformers")
    known: dict[str, Any] = {}
    exec(block, known)
    model = evilm.EViLM.from_pretrained("runs/demo/model")
    scores = model.match_pairs(["clip.mp4"], ["a red ball rolls to the left"])
    assert known["out"].match_logits.softmax(-1)[:, 1].tolist() == pytest.approx(scores.tolist(), abs=1e-5)
