"""Sweeps: many pre-trainings that differ in a few settings, and what is learned from them (Ray Tune)."""
