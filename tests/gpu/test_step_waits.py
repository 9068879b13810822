"""A step in the middle of a training never waits for the device: counted on the pretended card."""

from typing import Any

import pytest

from helpers import gpu_models as small
from helpers.gpu_waits import count_waits

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "three micro-batches, averaged weights, bf16, channels last": {
        "schedule__gradient_accumulation_steps": 3,
        "optim__ema_decay": 0.9,
        "cluster__precision": "bf16",
        "cluster__channels_last": True,
        "schedule__nonfinite": "skip",
    },
}


@pytest.mark.parametrize(
    "option", [name if name == "as it is" else pytest.param(name, marks=pytest.mark.long) for name in OPTIONS]
)
def test_student_step_has_no_blocking_read(option: str) -> None:
    config = small.settings(**OPTIONS[option])
    found = count_waits("student", config)
    assert found.reads == [], "\n".join(map(str, found.reads))
    # Numbers are waited for one step late: by then all of another step is queued behind them.
    assert min(found.queued) > 300, found.queued


REVIVED = {"revive_below": 0.9, "revive_every": 1}


@pytest.mark.parametrize("codebook", [{}, {"update": "ema"}, REVIVED, {"update": "ema"} | REVIVED])
def test_tokenizer_step_has_no_blocking_read(codebook: dict[str, Any]) -> None:
    found = count_waits("tokenizer", small.tokenizer_settings(), codebook)
    assert found.reads == [], "\n".join(map(str, found.reads))
    assert min(found.queued) > 100, found.queued
