"""The optimizer: weight decay and learning rate."""

import itertools

import pytest

from evilm.config.training import OptimConfig
from evilm.train.optimizer import learning_rate
from helpers.tiny_training import fresh_module


def test_weight_decay_spares_vectors() -> None:
    module, optimizer = fresh_module()
    decayed, spared = optimizer.param_groups
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(module.parameters()))


def test_learning_rate_warms_up_then_follows_a_cosine() -> None:
    settings = OptimConfig(lr=1.0, warmup_ratio=0.1, final_lr_ratio=0.0)
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5), "half way down, the cosine is half"
    assert rates[99] < 0.001
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
