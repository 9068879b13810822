"""bf16 where it pays, and the same sums in each run."""

from collections.abc import Iterator

import pytest
import torch

from evilm.config.models import CodebookConfig, FocalConfig, VideoTokenizerConfig
from evilm.config.stages import Pretrain
from evilm.dataloader.collate import TokenizerBatch
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.tokenizer_objective import TokenizerObjective
from evilm.train.optimizer import autocast, has_bf16, make_deterministic


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def _losses(steps: int) -> list[float]:
    codebook = CodebookConfig(num_codes=64, code_dim=8)
    config = VideoTokenizerConfig(
        input_px=64, patch_px=8, encoder_dim=32, encoder_layers=1, encoder_heads=2, decoder_dim=32, decoder_layers=1,
        decoder_heads=2, vocab_size=40, codebook=codebook, focal=FocalConfig(reduction="sum"),
    )  # fmt: skip
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
def test_two_threads_sum_the_same_in_each_run() -> None:
    make_deterministic()
    assert _losses(8) == _losses(8)


def test_bf16_is_used_where_asked() -> None:
    matrix = torch.ones(4, 4)
    for precision, wanted in (("bf16", True), ("fp32", False)):
        with autocast(precision, torch.device("cpu")):
            assert ((matrix @ matrix).dtype == torch.bfloat16) is wanted


def test_auto_follows_from_the_config_and_not_from_the_machine() -> None:
    """So that the precision is part of an output's identity, which every machine works out alike."""
    for gpus, wanted in ((0, "fp32"), (1, "bf16")):
        config = Pretrain().override({"cluster.gpus_per_worker": gpus}).with_precision()
        assert config.cluster.precision == wanted
        assert config.with_precision() == config
    asked = Pretrain().override({"cluster.gpus_per_worker": 1, "cluster.precision": "fp32"})
    assert asked.with_precision() == asked


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bf16_on_a_gpu() -> None:
    assert has_bf16(torch.device("cuda")) == torch.cuda.is_bf16_supported(including_emulation=False)
