"""Ray Train: the loop, checkpoints, tracking, and the doors that train."""
