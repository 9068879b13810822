"""Train the semantic video tokenizer (Sec. 3.3) under Ray Train.

    python pipelines/train_tokenizer.py --preset tiny --frames runs/demo/frames --vocab runs/demo/vocab \
        --out runs/demo/tokenizer
    ray job submit --working-dir . -- python pipelines/train_tokenizer.py --preset paper --frames s3://b/frames \
        --vocab s3://b/vocab --out s3://b/tokenizer

The last line is JSON with held-out code usage and word mAP; run it again to continue or to reuse.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("train_tokenizer", "evilm.tasks.train_tokenizer:train_tokenizer", tracked=False)
