"""Compute the video tokenizer's codes of every clip once, as labels of masked video modelling (Sec. 3.3).

    python pipelines/precompute_codes.py --frames runs/frames --tokenizer runs/tokenizer --out runs/codes
    ray job submit --working-dir . -- python pipelines/precompute_codes.py \
        --frames s3://bucket/frames --tokenizer s3://bucket/tokenizer --out s3://bucket/codes

Leaves one folder per tokenizer under --out, named by its fingerprint, with one file per frame shard: same clips, same
order. Run it again to continue, or to code frame shards that came since. `--views 4` codes four views of each clip, the
whole frame and three random crops and flips (--augment.*), in a folder of its own; pre-training shows one of them per
epoch, with just its codes. `--audit 1000` codes so many random clips again and reports how many codes agree.
Ends with a JSON line: clips by split, share of the codebook used, fingerprints.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("precompute_codes", "evilm.encode.encode_job:precompute_codes")
