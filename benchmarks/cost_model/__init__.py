"""Estimate the cost of pre-training on a cluster: formulas, and constants with their sources.

python benchmarks/cost.py [--preset paper] [--clips 2500000] [--gpus 8 16 32 64] [--json]
"""
