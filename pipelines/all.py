"""Run the whole workflow as one job: render or shard, vocabulary, tokenizer, codes, pre-training, scores, one table.

    python pipelines/all.py --preset tiny
    python pipelines/all.py --preset tiny --manifest clips.csv --videos clips/ --root runs/my \
        --set shard_videos.split=train --set benchmark.split=train
    ray job submit --working-dir . -- python pipelines/all.py --preset paper --root s3://bucket/run \
        --manifest s3://bucket/clips.csv --videos s3://bucket/clips --set shard_videos.cluster.num_workers=64 \
        --cluster.num-workers 4 --cluster.gpus-per-worker 1

Flags are those of `pretrain`; settings of other stages are sections of a preset, or `--set STAGE.NAME=VALUE`. Each
stage asks for its own resources and reuses what is finished: run it again to continue where it stopped. Ends with one
JSON line over all.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("all", "evilm.run_all:run_all", tracked=False)
