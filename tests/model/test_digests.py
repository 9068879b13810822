"""Files of a saved model that were damaged, or exchanged for those of another one."""

import json
import shutil
from pathlib import Path

import pytest

from evilm.config.models import VideoTokenizerConfig
from evilm.errors import CheckpointError, EvilmError, VocabError
from evilm.model.inference import EViLM
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.text.vocab import Vocab
from helpers.public_models import tuned_evilm
from helpers.small_models import build_tokenizer, drop_digests


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a head. Read it, don't write into it."""
    folder = tmp_path_factory.mktemp("saved")
    tuned_evilm("answer", ("red", "blue")).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def flip(path: Path) -> None:
    """Change the last bit of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
def test_flipped_bit_in_weights_is_found(copy: Path, name: str) -> None:
    flip(copy / name)
    with pytest.raises(CheckpointError, match=rf"{name} has another SHA-256 than when the model was saved") as caught:
        EViLM.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_flipped_bit_in_a_tokenizer_is_found(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(str(tmp_path))
    flip(tmp_path / "decoder.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.safetensors has another SHA-256"):
        VideoTokenizer.from_pretrained(str(tmp_path))


def test_changed_vocabulary_is_found(copy: Path) -> None:
    place = copy / "vocab" / "vocab.txt"
    lines = place.read_text().splitlines()
    lines[-1], lines[-2] = lines[-2], lines[-1]
    place.write_text("\n".join(lines) + "\n")
    with pytest.raises(VocabError, match=r"vocab\.txt was changed after it was written"):
        EViLM.from_pretrained(copy)
    Vocab(lines).save(copy / "vocab")  # another vocabulary of the same size, complete in itself
    with pytest.raises(CheckpointError, match=r"vocab/vocab\.txt has another SHA-256") as caught:
        EViLM.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_models_without_digests_load(copy: Path) -> None:
    for name in ("config.json", "task.json"):
        drop_digests(copy / name)
    settings = json.loads((copy / "vocab" / "config.json").read_text())
    del settings["fingerprint"]
    (copy / "vocab" / "config.json").write_text(json.dumps(settings))
    assert EViLM.from_pretrained(copy).task is not None


def test_a_truncated_file_is_one_line(copy: Path) -> None:
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "vocab/vocab.txt", "task.json"):
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(EvilmError, match=Path(name).stem) as caught:
            EViLM.from_pretrained(copy)
        assert "\n" not in str(caught.value)
        (copy / name).write_bytes(data)


def test_min_usage_of_a_tokenizer_can_change(tmp_path: Path) -> None:
    """`train_tokenizer` writes it to the config of a finished tokenizer."""
    build_tokenizer().save_pretrained(str(tmp_path))
    content = json.loads((tmp_path / "config.json").read_text())
    content["codebook"]["min_usage"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(content))
    config: VideoTokenizerConfig = VideoTokenizer.from_pretrained(str(tmp_path)).config
    assert config.codebook.min_usage == 0.0
