"""What belongs to the identity of an output, and what may change between runs."""

from evilm.config.base import fingerprint
from evilm.config.stages import Pretrain, Sweep, TrainTokenizer


def test_identity_ignores_length_and_evaluations() -> None:
    length = {"schedule.max_steps": 7, "schedule.eval_clips": 0, "schedule.eval_every_epochs": 0.5}
    for config in (Pretrain(), TrainTokenizer()):
        assert config.override(length).identity == config.identity
        assert config.override({"schedule.epochs": 3}).identity != config.identity
    assert Sweep().override(length).identity != Sweep().identity, "trials are compared by their evaluations"


def test_identity_ignores_paths_and_machinery() -> None:
    config = Pretrain()
    machinery = {"cluster.num_workers": 2, "tracking.enabled": False, "schedule.checkpoint_every_steps": 7}
    same = config.override({"out": "x", "root": "y"} | machinery)
    other = config.override({"optim.lr": 1e-3})
    assert fingerprint(config.identity) == fingerprint(same.identity) != fingerprint(other.identity)


def test_identity_contains_the_resolved_precision() -> None:
    on_cpu = Pretrain().with_precision()
    on_gpu = Pretrain().override({"cluster.gpus_per_worker": 1}).with_precision()
    assert (on_cpu.identity["precision"], on_gpu.identity["precision"]) == ("fp32", "bf16")
