"""The models of the `gpu` preset: their sizes, built without a network."""

import socket
from typing import NoReturn, cast

import pytest

from evilm.config.presets import defaults
from evilm.config.runs import Pretrain
from evilm.model.student import Student
from evilm.model.tokenizer import VideoTokenizer


def _no_network(*_: object) -> NoReturn:
    raise AssertionError("a model of the preset wants to download something")


def test_the_models_of_the_gpu_preset_are_built_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    config = cast(Pretrain, defaults("pretrain", "gpu"))
    paper = cast(Pretrain, defaults("pretrain", "paper"))
    tokenizer = config.build.train_tokenizer.arch
    assert (config.arch.video_weights, tokenizer.encoder_weights, config.build.build_vocab.base_vocab) == ("", "", "")
    assert config.arch == paper.arch.model_copy(update={"video_weights": ""}), "the paper's student"
    arch = config.arch.model_copy(update={"num_codes": tokenizer.codebook.num_codes})
    sizes = [sum(p.numel() for p in model.parameters()) for model in (Student(arch), VideoTokenizer(tokenizer))]
    # The student: 16,313,514 of Table 8, and heads of 1,725,568 + 58,693 for 4,096 codes and 9,157 word pieces, + 1,536
    # of the temporal embedding. The tokenizer: encoder 22.5 M, decoder and word head 10.7 M, codebook 4,096 x 32.
    assert sizes == [18_099_311, 33_375_845]
