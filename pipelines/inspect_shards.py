"""Say what frame shards and codes hold, verify them, and draw contact sheets.

    python pipelines/inspect_shards.py --frames runs/frames
    python pipelines/inspect_shards.py --frames runs/frames --codes runs/codes --verify --out runs/look --sheets 8
    ray job submit --working-dir . -- python pipelines/inspect_shards.py --frames s3://bucket/frames --verify quick

Prints distributions, quarantine by reason, duplicates and frequent words; with `--out` also `stats.png` and the sheets.
`--verify` reads every byte, row and JPEG, lists what is wrong, and ends in exit code 1 where anything is;
`--verify quick` looks at sizes and footers. Ends with the same as a JSON line.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("inspect_shards", "evilm.inspect.inspect_shards:inspect_shards", tracked=False)
