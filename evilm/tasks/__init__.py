"""Commands that train: objective, loaders and export of each, their inputs, and how a run ends."""
