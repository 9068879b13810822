"""Cut a manifest of captioned videos into Parquet frame shards, through Ray Data.

    python pipelines/shard_videos.py --manifest clips.csv --videos clips/ --out runs/frames
    ray job submit --working-dir . -- python pipelines/shard_videos.py \
        --manifest 's3://bucket/clips/*.parquet' --videos s3://bucket/clips --out s3://bucket/frames

Leaves `manifest.json`, one Parquet file per 1,000 clips, and `quarantine/` with every row that became no clip and why.
The same command continues what was interrupted, and adds the rows that the manifest gained. `--retry fetch_error` (or
`all`) tries quarantined clips once more. A job ends early when most videos can't be fetched.
Ends with a JSON line: clips by split, quarantined rows by reason, fingerprint.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("shard_videos", "evilm.ingest.shard_videos:shard_videos")
