"""The model in transformers: AutoConfig and AutoModel, in whatever order the packages are imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evilm.errors import CheckpointError, ConfigError
from evilm.model.inference import EViLM
from helpers.public_models import CAPTIONS, noise, random_evilm


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model. Read it, don't write into it."""
    folder = tmp_path_factory.mktemp("saved")
    random_evilm().save_pretrained(folder)
    return folder


def test_features_and_scores_are_those_of_evilm(saved: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, BertTokenizer

    ours, theirs = EViLM.from_pretrained(saved), AutoModel.from_pretrained(saved)
    assert not theirs.training
    videos = [noise(seed=k) for k in range(3)]
    frames = torch.from_numpy(np.stack([theirs.evilm.preprocessor(video) for video in videos]))
    words = BertTokenizer.from_pretrained(saved / "vocab")(CAPTIONS, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = theirs(frames, **words)
        assert theirs(frames).text_features is None
        assert torch.equal(theirs(**words).text_features, out.text_features)
    texts = ours.embed_texts(CAPTIONS)
    assert torch.equal(out.video_features, ours.embed_videos(videos))
    assert torch.equal(out.text_features[~texts.padding], texts.words[~texts.padding])
    scores = out.match_logits.softmax(-1)[:, 1].numpy()
    assert scores == pytest.approx(ours.match_pairs(videos, CAPTIONS), abs=1e-5)
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(frames).video_features, out.video_features)


def test_dtype_is_given_or_kept(saved: Path) -> None:
    from transformers import AutoConfig, AutoModel

    assert AutoConfig.from_pretrained(saved).num_frames == 3
    assert AutoModel.from_pretrained(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AutoModel.from_pretrained(saved, dtype="auto", device_map="cpu").dtype == torch.float32


def test_a_fresh_model_is_built_from_a_config(saved: Path) -> None:
    from transformers import AutoConfig, AutoModel

    fresh = AutoModel.from_config(AutoConfig.from_pretrained(saved))
    assert fresh(torch.from_numpy(noise())[None]).video_features.shape == (1, 12, 48)
    with pytest.raises(ConfigError, match="has no vocabulary"):
        fresh.save_pretrained("never")


def test_what_transformers_can_not_load_is_one_line(saved: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    with pytest.raises(ConfigError, match="load_in_8bit = True can't be used for E-ViLM"):
        AutoModel.from_pretrained(saved, load_in_8bit=True)
    with pytest.raises(ConfigError, match="device_map = 'auto'"):
        AutoModel.from_pretrained(saved, device_map="auto")
    with pytest.raises(ConfigError, match=r"num_frames = 8: the model in .* has 3"):
        AutoModel.from_pretrained(saved, num_frames=8)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((saved / "config.json").read_text())))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "imports",
    [
        "import evilm, transformers",
        *(
            pytest.param(imports, marks=pytest.mark.long)
            for imports in (
                "import transformers, evilm",
                "from transformers import AutoModel; import evilm, transformers",
                "import evilm; evilm.EViLM; import transformers",
                "import transformers, evilm.errors",
            )
        ),
    ],
)
def test_registration_does_not_depend_on_the_order_of_imports(imports: str, saved: Path) -> None:
    code = f"{imports}\nprint(type(transformers.AutoModel.from_pretrained({str(saved)!r})).__name__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "EViLMAutoModel"
