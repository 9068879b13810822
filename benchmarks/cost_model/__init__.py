"""What a pre-training costs on a cluster: a model in formulas, its constants each with its source.

python benchmarks/cost.py [--preset paper] [--clips 2500000] [--gpus 8 16 32 64] [--json]
"""
