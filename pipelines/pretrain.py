"""Pre-train E-ViLM: MLM + VTM + MVM against cached codes, under Ray Train.

    python pipelines/pretrain.py --preset tiny
    ray job submit --working-dir . -- python pipelines/pretrain.py --preset tiny
    python pipelines/pretrain.py --preset paper --frames s3://b/frames --codes s3://b/codes --vocab s3://b/vocab \
        --tokenizer s3://b/tokenizer --out s3://b/model --cluster.num-workers 8 --cluster.gpus-per-worker 1

With no places named it runs on the embedded corpus under --root and builds what is missing. The last line is JSON with
the losses and accuracies; run it again to continue or to reuse.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("pretrain", "evilm.tasks.pretrain:pretrain", tracked=False)
