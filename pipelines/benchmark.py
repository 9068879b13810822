"""Score a model zero-shot (retrieval, multiple choice, masked codes; Sec. 4.4), or on a downstream task.

    python pipelines/benchmark.py --preset tiny --root runs/demo
    python pipelines/benchmark.py --model runs/demo/model --frames runs/real/frames --split train --out runs/real/scores
    python pipelines/benchmark.py --preset tiny --task msvd-qa --root runs/demo
    ray job submit --working-dir . -- python pipelines/benchmark.py --root s3://bucket/runs/demo

Prints a table of figures beside chance, and ends with the same as a JSON line; leaves `ranks.png` and `scores.parquet`.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("benchmark", "evilm.eval.benchmark:benchmark")
