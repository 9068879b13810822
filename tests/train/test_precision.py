"""bf16 where it pays, and the same sums in each run."""

from collections.abc import Iterator

import pytest
import torch

from evilm.config.models import FocalConfig
from evilm.config.stages import Pretrain
from evilm.dataloader.collate import TokenizerBatch
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.tokenizer_objective import TokenizerObjective
from evilm.train.optimizer import autocast, has_bf16, make_deterministic
from helpers.small_models import tokenizer_config


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def _losses(steps: int) -> list[float]:
    sizes = {"patch_px": 8, "num_frames": 4, "encoder_dim": 32, "decoder_dim": 32, "vocab_size": 40}
    config = tokenizer_config({"num_codes": 64, "code_dim": 8}, **sizes, focal=FocalConfig(reduction="sum"))
    torch.manual_seed(0)
    objective = TokenizerObjective(VideoTokenizer(config), config)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(steps):
        frames = torch.randint(0, 256, (8, 4, 64, 64, 3), dtype=torch.uint8, generator=generator)
        words = torch.rand(8, 40, generator=generator) < 0.2
        terms = objective(TokenizerBatch(frames, words, [str(k) for k in range(8)]))
        loss = sum(terms[name].mean * weight for name, weight in objective.weights.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.usefixtures("two_threads")
def test_losses_repeat_exactly_with_two_threads() -> None:
    make_deterministic()
    assert _losses(8) == _losses(8)


def test_autocast_uses_the_requested_precision() -> None:
    matrix = torch.ones(4, 4)
    for precision, wanted in (("bf16", True), ("fp32", False)):
        with autocast(precision, torch.device("cpu")):
            assert ((matrix @ matrix).dtype == torch.bfloat16) is wanted


def test_auto_precision_follows_from_the_config_not_the_machine() -> None:
    """So that the precision is part of an output's identity, which every machine works out alike."""
    for gpus, wanted in ((0, "fp32"), (1, "bf16")):
        config = Pretrain().override({"cluster.gpus_per_worker": gpus}).with_precision()
        assert config.cluster.precision == wanted
        assert config.with_precision() == config
    asked = Pretrain().override({"cluster.gpus_per_worker": 1, "cluster.precision": "fp32"})
    assert asked.with_precision() == asked


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_has_bf16_agrees_with_torch_on_a_gpu() -> None:
    assert has_bf16(torch.device("cuda")) == torch.cuda.is_bf16_supported(including_emulation=False)
