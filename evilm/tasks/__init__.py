"""Tasks: objective, loaders and export of each training command, its inputs, and how its run ends."""
