"""A video encoder, a video tokenizer and a task that another package registers, by its entry points or by name."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from evilm.config.data import ColumnsConfig
from evilm.config.models import EViLMConfig
from evilm.config.presets import defaults
from evilm.config.stages import PrecomputeCodes, TrainTokenizer
from evilm.encode.encode_job import precompute_codes
from evilm.errors import CheckpointError, ConfigError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.manifests.layouts import assign
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.base_tokenizer import TOKENIZERS, load_tokenizer
from evilm.model.video_encoder import ENCODERS, build_video_encoder
from evilm.shards import FrameManifest
from evilm.tasks.pretrain import pretrain
from evilm.train.launch import fit
from evilm.train.task import TASKS
from helpers import toy_plugins
from helpers.paths import ROOT, SMALL
from helpers.small_corpus import in_this_process

Workflow = tuple[Path, dict[str, Any]]
_SMALL = {"input_px": 64, "text_dim": 32, "text_layers": 1, "text_heads": 2, "dim": 32, "decoder_layers": 1}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toys as an installed package: what is beside it is on the path."""
    folder = tmp_path / "site"
    toy_plugins.write_entry_points(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def _model(**settings: Any) -> EViLMModel:
    return EViLMModel(EViLMConfig(**_SMALL | {"decoder_heads": 2, "vocab_size": 50, "num_codes": 16} | settings))


def test_registries_list_what_is_built_in_and_installed(installed: Path) -> None:
    assert "evilm_tokenizer" in TOKENIZERS.names()
    assert "brightness" in TOKENIZERS.names()
    assert TASKS.get("brightness") is toy_plugins.BrightnessTask
    assert ENCODERS.get("mean_colour") is toy_plugins.MeanColourEncoder
    with pytest.raises(ConfigError, match="'nothing' is not a task; use brightness, pretrain, train_tokenizer, fin"):
        TASKS.get("nothing")
    with pytest.raises(ConfigError, match="task 'nowhere:Task': No module named 'nowhere'; it must be importable on"):
        TASKS.get("nowhere:Task")


@pytest.mark.parametrize("name", ["mean_colour", "helpers.toy_plugins:MeanColourEncoder"])
def test_encoder_of_another_package_is_part_of_the_model(name: str, installed: Path) -> None:
    model = _model(video_encoder=name)
    assert isinstance(model.video_encoder, toy_plugins.MeanColourEncoder)
    assert model.pixels.mean.flatten().tolist() == [0.0, 0.0, 0.0]
    frames = torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8)
    assert model.encode_video(frames).shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("name", "px"),
    [("fastvit_t8", 64), ("vit_pe_core_tiny_patch16_384", 64), ("resnet18", 64), ("swin_tiny_patch4_window7_224", 224)],
)
def test_image_models_of_timm_give_regions_of_32_pixels(name: str, px: int) -> None:
    encoder = build_video_encoder(name, "", px)
    regions = encoder(torch.rand(2, 3, px, px))
    assert regions.shape == (2, px // 32, px // 32, encoder.channels)
    regions.square().mean().backward()
    assert [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("named", [True, False])
def test_table_layout_of_another_package_is_recognised(named: bool, installed: Path) -> None:
    columns = ColumnsConfig(layout="films" if named else "auto")
    roles = assign(["film", "from_s", "to_s", "plot", "year"], columns, "films.csv")
    assert (roles.layout, roles.videoid, roles.caption, roles.start) == ("films", "film", "plot", "from_s")
    with pytest.raises(ConfigError, match="'film' is not a table layout; use films, webdataset, koala"):
        assign(["film"], ColumnsConfig(layout="film"), "films.csv")


def test_unknown_timm_encoder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"video_encoder = 'edgenxt'.*the paper uses edgenext_small"):
        build_video_encoder("edgenxt", "", 64)


def test_unknown_tokenizer_kind_is_rejected(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "config.json"), {"model_type": "os:system"})
    with pytest.raises(
        CheckpointError, match="holds a 'os:system'; installed video tokenizers are evilm_tokenizer; others"
    ):
        load_tokenizer(str(tmp_path))


@pytest.mark.long
def test_model_trains_on_codes_of_another_packages_tokenizer(
    installed: Path, small_workflow: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, tokenizer = small_workflow[0], str(tmp_path / "tokenizer")
    toy_plugins.BrightnessTokenizer(2).save_pretrained(tokenizer)
    coding = PrecomputeCodes(frames=str(root / "frames"), tokenizer=tokenizer, out=str(tmp_path / "codes"))
    summary = precompute_codes(coding.override({"batch_clips": 8, "audit": 4}), in_this_process)
    assert summary["num_codes"] == 16
    assert summary["audit"]["agreement"] == 1
    places = {"frames": str(root / "frames"), "vocab": str(root / "vocab"), "tokenizer": tokenizer}
    places |= {"codes": str(tmp_path / "codes"), "root": str(tmp_path), "out": str(tmp_path / "model")}
    config: Any = defaults("pretrain", str(SMALL)).override(places | {"schedule.max_steps": 2})
    trained = pretrain(config)
    assert trained["steps"] == 2
    assert trained["inputs"]["tokenizer"] == toy_plugins.BrightnessTokenizer(2).fingerprint()


@pytest.mark.long
def test_task_of_another_package_is_trained_and_exported(small_workflow: Workflow, tmp_path: Path) -> None:
    frames, out = str(small_workflow[0] / "frames"), str(tmp_path / "line")
    values = {"frames": frames, "out": out, "schedule.epochs": 4, "optim.lr": 0.3, "tracking.enabled": False}
    config = defaults("train_tokenizer", str(SMALL)).override(values)
    assert isinstance(config, TrainTokenizer)
    with Output(config, out, {"frames": FrameManifest.load(frames).fingerprint}) as output:
        summary = output.close(fit(config, "brightness", "helpers.toy_plugins:BrightnessTask", output))
    assert summary["val"]["brightness_error"] < 0.05
    assert set(storage.read_json(f"{out}/line.json")) == {"weight", "bias"}


def test_documented_examples_equal_the_toys_that_run_here() -> None:
    source = Path(toy_plugins.__file__).read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    assert [block for block in blocks if block not in source] == []
