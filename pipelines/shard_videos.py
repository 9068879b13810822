"""Cut a CSV of captioned videos and a folder of video files into Parquet frame shards, through Ray Data.

    python pipelines/shard_videos.py --manifest clips.csv --videos clips/ --out runs/frames
    ray job submit --working-dir . -- python pipelines/shard_videos.py \
        --manifest s3://bucket/clips.csv --videos s3://bucket/clips --out s3://bucket/frames

Columns are found by name, WebVid's by default; `--columns.caption text` reads another one. Leaves `manifest.json`, one
Parquet file per 1,000 clips and `quarantine/` with every row that became no clip and why. Run it again to continue.
Ends with a JSON line: clips by split, quarantined rows by reason, fingerprint.
"""

from evilm.train.door import run

if __name__ == "__main__":
    run("shard_videos", "evilm.data.shard:shard_videos")
