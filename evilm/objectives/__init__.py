"""Objectives: compute losses and metrics of a batch, one module per training. Torch only, no Ray."""
