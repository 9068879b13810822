"""Score a pre-trained model zero-shot: text-to-video retrieval, multiple choice, masked-code accuracy (Sec. 4.4).

    python pipelines/benchmark.py --preset tiny --root runs/demo
    python pipelines/benchmark.py --model runs/demo/model --frames runs/real/frames --split train --out runs/real/scores
    ray job submit --working-dir . -- python pipelines/benchmark.py --root s3://bucket/runs/demo

Prints a table of figures beside chance, and ends with the same as a JSON line; leaves `ranks.png` and `scores.parquet`.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("benchmark", "evilm.eval.benchmark:benchmark")
