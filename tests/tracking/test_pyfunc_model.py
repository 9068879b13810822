"""The finished model where it goes: README, card, MLflow run and registry."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evilm
from evilm.model.evilm_model import EViLMModel
from evilm.shards import FrameManifest, decode_frames, read_group
from evilm.text.vocab import Vocab
from evilm.tracking.pyfunc_model import REGISTERED_NAME
from helpers.paths import ROOT
from helpers.workflow import Workflow, small_pretrain

README = ROOT / "README.md"


@pytest.fixture(scope="module")
def stored(small_workflow: Workflow) -> list[tuple[str, str, list[bytes]]]:
    """Some clips of the test split: path of the video, caption, and the JPEGs of its frame shard."""
    root, _ = small_workflow
    frames = FrameManifest.load(str(root / "frames"))
    columns = ["clip_id", "captions", "frames", "source_uri"]
    rows = read_group(f"{frames.uri}/{frames.of_split('test')[0].file}", 0, columns).to_pylist()[:3]
    return [(str(root / "corpus" / "videos" / row["source_uri"]), row["captions"][0], row["frames"]) for row in rows]


@pytest.fixture(scope="module")
def served(small_workflow: Workflow) -> Iterator[Any]:
    """The model as MLflow loads it."""
    import mlflow  # here, since collecting the tests should be fast

    root, _ = small_workflow
    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    yield mlflow.pyfunc.load_model(f"models:/{REGISTERED_NAME}/1")
    mlflow.set_tracking_uri(before)


def predict(model: Any, rows: list[dict[str, Any]]) -> Any:
    import pandas as pd

    return model.predict(pd.DataFrame(rows))


def registry(root: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def test_video_file_scores_equal_those_of_its_stored_frames(
    small_workflow: Workflow, stored: list[tuple[str, str, list[bytes]]]
) -> None:
    root, _ = small_workflow
    model = evilm.EViLM.from_pretrained(root / "model")
    student, vocab = EViLMModel.from_pretrained(str(root / "model")), Vocab.load(str(root / "vocab"))
    for path, caption, jpegs in stored:
        pixels = decode_frames(jpegs)
        assert np.array_equal(model.preprocessor(path), pixels)
        ids = torch.tensor([vocab.encode(caption, student.config.max_text_len)])
        with torch.no_grad():
            text = student.encode_text(ids, torch.zeros_like(ids, dtype=torch.bool))
            cls = student.decode(student.encode_video(torch.from_numpy(pixels)[None]), text).cls
            direct = float(student.match_logits(cls).softmax(-1)[0, 1])
        assert model.match_pairs([path], [caption])[0] == pytest.approx(direct, abs=1e-6)


def test_readme_example_runs_on_a_finished_workflow(
    small_workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "EViLM" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(small_workflow[0])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    shown = np.array([float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?", capsys.readouterr().out)])
    scores = names["model"].match(names["videos"], names["texts"])
    assert scores.shape == (1, 2)
    assert shown == pytest.approx(scores.ravel(), rel=1e-5)
    assert ((shown > 0) & (shown < 1)).all()


@pytest.mark.long
def test_logged_model_scores_equal_direct_scores_in_a_fresh_process(
    small_workflow: Workflow, stored: list[tuple[str, str, list[bytes]]], tmp_path: Path
) -> None:
    root, _ = small_workflow
    rows = {"video": [path for path, *_ in stored], "caption": [caption for _, caption, _ in stored]}
    code = (
        "import json, sys, mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri('sqlite:///{root / 'mlflow.db'}')\n"
        f"model = mlflow.pyfunc.load_model('models:/{REGISTERED_NAME}/1')\n"
        "print(json.dumps(model.predict(pd.DataFrame(json.load(sys.stdin)))['score'].tolist()))\n"
        "import evilm; print(evilm.__file__); print('ray' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(rows), capture_output=True, text=True, check=True, cwd=tmp_path,
        env=os.environ | {"EVILM_VIDEO_ROOT": "/"},
    )  # fmt: skip
    scores, place, has_ray = run.stdout.strip().splitlines()
    direct = evilm.EViLM.from_pretrained(root / "model").match_pairs(rows["video"], rows["caption"])
    assert json.loads(scores) == direct.astype(float).tolist()
    assert "mlruns" in place, "the model brings its own code along"
    assert has_ray == "False"


def test_base64_frames_score_like_their_file(
    served: Any, stored: list[tuple[str, str, list[bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVILM_VIDEO_ROOT", "/")
    by_path = predict(served, [{"video": path, "caption": caption} for path, caption, _ in stored])
    encoded = [[base64.b64encode(jpeg).decode() for jpeg in jpegs] for *_, jpegs in stored]
    rows = [{"frames": frames, "caption": caption} for frames, (_, caption, _) in zip(encoded, stored, strict=True)]
    assert predict(served, rows).equals(by_path)
    assert served.predict(served.input_example)["score"].between(0, 1).all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "x"}, "row 0: neither video nor frames"),
        ({"caption": "x", "video": "http://host/clip.mp4"}, "give a path on the serving machine"),
        ({"caption": "x", "video": "/none.mp4"}, "EVILM_VIDEO_ROOT is not set where the model is served"),
        ({"caption": "x", "frames": ["!"] * 4}, "frames are not base64 text"),
        ({"caption": "x", "frames": [base64.b64encode(b"no").decode()] * 4}, "a frame that is not a JPEG"),
    ],
)
def test_unscorable_row_says_why(served: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        predict(served, [row])
    assert "\n" not in str(caught.value)


def test_served_model_reads_only_below_its_video_root(
    served: Any, stored: list[tuple[str, str, list[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, caption, _ = stored[0]
    root = Path(path).parents[1]
    monkeypatch.setenv("EVILM_VIDEO_ROOT", str(root))
    below = {"video": str(Path(path).relative_to(root)), "caption": caption}
    assert len(predict(served, [below])) == 1
    (tmp_path / "link.mp4").symlink_to(path)
    monkeypatch.setenv("EVILM_VIDEO_ROOT", str(tmp_path))
    for outside in (path, "../clip.mp4", "link.mp4"):
        with pytest.raises(Exception, match="lies outside EVILM_VIDEO_ROOT"):
            predict(served, [{"video": outside, "caption": caption}])


def test_logged_model_has_signature_pins_and_no_pickles(small_workflow: Workflow, served: Any) -> None:
    root, summary = small_workflow
    signature = served.metadata.signature
    assert {column.name: column.required for column in signature.inputs} == {
        "caption": True, "video": False, "frames": False,
    }  # fmt: skip
    assert [column.name for column in signature.outputs] == ["score"]
    assert served.metadata.metadata == summary["inputs"]
    (models,) = (root / "mlruns").rglob("MLmodel")
    files = [path for path in models.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    assert not [path for path in files if "checkpoints" in path.parts], "the model, not its training"
    pins = (models.parent / "requirements.txt").read_text().split()
    assert any(pin.startswith("torch==") for pin in pins)
    assert not [pin for pin in pins if "+" in pin]
    client = registry(root)
    version = client.get_model_version(REGISTERED_NAME, "1")
    assert version.tags.items() >= summary["inputs"].items()  # and, once it is scored, its scores
    assert version.run_id == json.loads((root / "model" / "mlflow.json").read_text())["run_id"]
    assert client.get_run(version.run_id).info.status == "FINISHED"


def test_model_is_registered_once(small_workflow: Workflow) -> None:
    from evilm.tracking.pyfunc_model import publish

    root, summary = small_workflow
    config = small_pretrain(root, out=str(root / "model"))
    kept = (root / "model" / "mlflow.json").read_bytes()
    assert json.loads(kept)["model"] == f"models:/{REGISTERED_NAME}/1"
    publish(config, str(root / "model"), summary)
    assert (root / "model" / "mlflow.json").read_bytes() == kept
    client = registry(root)
    assert len(client.search_model_versions(f"name = '{REGISTERED_NAME}'")) == 1
