"""Folders and files of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SMALL = ROOT / "tests" / "small.yaml"
"""The preset of the small workflow."""
