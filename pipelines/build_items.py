"""Build the items of a downstream task (questions, choices, texts, labels) from its official annotations.

    python pipelines/build_items.py --task msrvtt-qa --annotations MSRVTT-QA --frames runs/frames --out runs/qa

Items name clips of the frame shards by id, so that many tasks share the frames of a video. `videos.csv` beside them is
a manifest of the videos for shard_videos. Ends with a JSON line: items, clips and coverage by split, fingerprint.
"""

from evilm.cli import run

if __name__ == "__main__":
    run("build_items", "evilm.items.build_items:build_items")
