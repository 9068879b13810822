"""A step in the middle of a training never waits for the device: counted on the pretended card."""

from typing import Any

import pytest

from evilm.config.finetune_command import Finetune
from helpers import gpu_models as small
from helpers.contrast_ranks import make_batch, make_objective
from helpers.gpu_waits import STEPS, WARM_UP, count_waits, count_waits_of
from helpers.item_models import CASES, case

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


def _fine_tuning(micro_batches: int) -> Finetune:
    schedule = {"batch_clips": 4 * micro_batches, "gradient_accumulation_steps": micro_batches}
    return Finetune.model_validate({"schedule": schedule, "cluster": {"precision": "fp32"}})


@pytest.mark.parametrize("name", CASES)
def test_step_of_a_downstream_task_has_no_blocking_read(name: str) -> None:
    held = [[case(name)[1]] for _ in range(WARM_UP + STEPS)]
    found = count_waits_of(lambda: case(name)[0], held, _fine_tuning(1))
    assert found.reads == [], "\n".join(map(str, found.reads))


@pytest.mark.long
def test_step_of_retrieval_has_no_blocking_read() -> None:
    held = [[make_batch(slice(0, 5)), make_batch(slice(5, 10))] for _ in range(WARM_UP + STEPS)]
    found = count_waits_of(make_objective, held, _fine_tuning(2))
    assert found.reads == [], "\n".join(map(str, found.reads))
