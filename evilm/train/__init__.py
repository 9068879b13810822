"""Ray Train: launch, trainer, train step, checkpoints, preemption."""
