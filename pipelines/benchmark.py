"""Score a pre-trained model zero-shot: text-to-video retrieval, multiple choice, masked-code accuracy (Sec. 4.4).

    python pipelines/benchmark.py --preset tiny --root runs/demo
    python pipelines/benchmark.py --model runs/demo/model --frames runs/real/frames --split test --out runs/real/benchmark
    ray job submit --working-dir . -- python pipelines/benchmark.py --model s3://b/model --frames s3://b/frames --out s3://b/bench

Prints a table of figures beside chance, and ends with the same as a JSON line; leaves `ranks.png` and `scores.parquet`.
"""

from evilm.train.door import run

if __name__ == "__main__":
    run("benchmark", "evilm.eval.benchmark:benchmark")
