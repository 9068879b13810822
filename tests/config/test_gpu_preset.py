"""The `gpu` preset: its models, built without a network, and what the other commands make of it."""

import json
import socket
from typing import NoReturn, cast

import pytest
from cost import main as budget

from evilm.config.command_line import parse
from evilm.config.presets import defaults
from evilm.config.stages import Pretrain
from evilm.model.cost import main as cost
from evilm.model.evilm_model import EViLMModel
from evilm.model.tokenizers.semantic_vq import VideoTokenizer


def _no_network(*_: object) -> NoReturn:
    raise AssertionError("a model of the preset wants to download something")


def test_gpu_preset_models_need_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    config = cast(Pretrain, defaults("pretrain", "gpu"))
    paper = cast(Pretrain, defaults("pretrain", "paper"))
    tokenizer = config.train_tokenizer.arch
    assert (config.arch.video_weights, tokenizer.encoder_weights, config.build_vocab.base_vocab) == ("", "", "")
    assert config.arch == paper.arch.model_copy(update={"video_weights": ""}), "the paper's student"
    arch = config.arch.model_copy(update={"num_codes": tokenizer.codebook.num_codes})
    sizes = [sum(p.numel() for p in model.parameters()) for model in (EViLMModel(arch), VideoTokenizer(tokenizer))]
    # The student: 16,313,514 of Table 8, and heads of 1,725,568 + 58,693 for 4,096 codes and 9,157 word pieces, + 1,536
    # of the temporal embedding. The tokenizer: encoder 22.5 M, decoder and word head 10.7 M, codebook 4,096 x 32.
    assert sizes == [18_099_311, 33_375_845]


@pytest.mark.parametrize("stage", ["all", "masking_ratio"])
def test_gpu_preset_configures_workflow_and_sweeps(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(stage, ["--preset", "gpu", "--cluster.num-workers", "8", "--dry-run"])
    assert ended.value.code == 0
    assert "batch_clips: 512" in capsys.readouterr().out


@pytest.mark.long
def test_cost_model_keeps_the_clips_per_gpu_of_the_gpu_preset(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "gpu", "--devices", "a10g", "--gpus", "1", "8"]
    budget([*flags, "--json"])
    trainings = json.loads(capsys.readouterr().out)["trainings"]
    assert {row["clips_per_gpu_step"] for row in trainings} == {64}
    eager = [row["epoch_s"] for row in trainings if not row["is_compiled"]]
    assert eager[0] > 4 * eager[1]
    budget([*flags, "--set", "job.batch_clips=128", "--json"])
    trainings = json.loads(capsys.readouterr().out)["trainings"]
    assert [row["clips_per_gpu_step"] for row in trainings if not row["is_compiled"]] == [128, 16]
    budget(flags)
    assert "64 clips per GPU and step" in capsys.readouterr().out
    cost(["--config", "gpu"])
    assert "textual encoder" in capsys.readouterr().out
