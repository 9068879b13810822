"""What belongs to the identity of an output, and what may change between runs."""

from evilm.config.stages import Pretrain, Sweep, TrainTokenizer


def test_identity_ignores_length_and_evaluations() -> None:
    length = {"schedule.max_steps": 7, "schedule.eval_clips": 0, "schedule.eval_every_epochs": 0.5}
    for config in (Pretrain(), TrainTokenizer()):
        assert config.override(length).identity == config.identity
        assert config.override({"schedule.epochs": 3}).identity != config.identity
    assert Sweep().override(length).identity != Sweep().identity, "trials are compared by their evaluations"
