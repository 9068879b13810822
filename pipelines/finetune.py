"""Fine-tune a pre-trained model on a downstream task (Sec. 4.2-4.3).

    python pipelines/finetune.py --preset tiny --task msvd-qa --root runs/demo
    python pipelines/finetune.py --task msvd-qa --model runs/big/model --frames runs/msvd/frames --annotations MSVD-QA \
        --out runs/msvd/qa-model
    ray job submit --working-dir . -- python pipelines/finetune.py --task tgif-frame --root s3://bucket/runs/tgif

Trained, continued, tracked and published like a pre-training; ends with the scores on val as a JSON line.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("finetune", "evilm.tasks.finetune:finetune", tracked=False)
