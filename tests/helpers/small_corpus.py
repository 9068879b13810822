"""A small corpus with some bad rows, and what sharding makes of it."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evilm import errors
from evilm.config.stages import ShardVideos
from evilm.shards import FrameManifest, read_group
from helpers.tables import write_csv
from helpers.video_files import write_video

SMALL = {
    "sampling.frame_px": 64,
    "sampling.shard_clips": 4,
    "sampling.row_group_clips": 3,
    "cluster.num_workers": 1,  # each more is a process that imports everything, on two cores with two tests at a time
}


SERVED = ("17.mp4", "10.mp4")
"""Videos that `served_corpus` has on a web server; the second one is later in the plan."""
_HEADER = ("videoid", "page_dir", "name", "split")


def make_corpus(folder: Path) -> Path:
    """26 rows: 22 good clips in two splits, one broken, one missing, one doubled, one without a caption."""
    (folder / "videos" / "p").mkdir(parents=True)
    rows = []
    for number in range(23):
        write_video(folder / "videos" / "p" / f"{number}.mp4", num_frames=12, first_picture=number)
        rows.append([str(number), "p", f"clip {number}", "val" if number % 4 == 0 else "train"])
    broken = folder / "videos" / "p" / "22.mp4"
    broken.write_bytes(broken.read_bytes()[:-300])
    rows += [["99", "p", "gone", "train"], ["3", "p", "again", "train"], ["4", "p", " ", "train"]]
    write_csv(folder / "clips.csv", _HEADER, *rows)
    return folder


def make_clips(folder: Path, num_clips: int, **manifests: int) -> Path:
    """Good clips of six frames, all in `clips.csv`, and the first ones in other manifests, by name and number."""
    (folder / "videos" / "p").mkdir(parents=True)
    for number in range(num_clips):
        write_video(folder / "videos" / "p" / f"{number}.mp4", num_frames=6, first_picture=number)
    rows = [[str(number), "p", f"clip {number}", "train"] for number in range(num_clips)]
    for name, count in {"clips": num_clips, **manifests}.items():
        write_csv(folder / f"{name}.csv", _HEADER, *rows[:count])
    return folder


def serve_some(corpus: Path, web: Path, url: str, names: Sequence[str]) -> None:
    """Move videos of a corpus into the folder of a web server, and add their URLs to its manifest."""
    for name in names:
        (corpus / "videos" / "p" / name).rename(web / name)
    with (corpus / "clips.csv").open() as file:
        header, *rows = csv.reader(file)
    urls = {name.removesuffix(".mp4"): f"{url}/{name}" for name in names}
    write_csv(corpus / "clips.csv", [*header, "url"], *([*row, urls.get(row[0], "")] for row in rows))


def shard_config(corpus: Path, out: Path, **settings: Any) -> ShardVideos:
    """Settings that shard a corpus into small shards."""
    config = ShardVideos(manifest=str(corpus / "clips.csv"), videos=str(corpus / "videos"), out=str(out))
    return config.override(SMALL | settings)


def clips_of(out: Path) -> list[dict[str, Any]]:
    """The rows of all shards."""
    manifest, columns = FrameManifest.load(str(out)), ["clip_id", "row", "split", "captions", "frames"]
    return [
        row
        for shard in manifest.shards
        for group in range(len(shard.row_groups))
        for row in read_group(f"{out}/{shard.file}", group, columns).to_pylist()
    ]


def quarantine_of(out: Path) -> dict[str, str]:
    """Reasons by clip id and record."""
    rows = [row for path in (out / "quarantine").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {f"{row['clip_id']}/{row['record']}": row["reason"] for row in rows}


def in_this_process(todo: Sequence[str], worker: Callable[..., Any], *rest: Any) -> Iterator[dict[str, Any]]:
    """Map the worker over shards one by one, without Ray: for tests of what is planned, not of how it is run."""
    options = rest[1]
    if isinstance(worker, type):
        worker = worker(*options["fn_constructor_args"])
    for name in todo:
        row = {key: value[0] for key, value in worker({"name": np.array([name])}, *options.get("fn_args", ())).items()}
        if row["error"]:
            raise getattr(errors, row["error"])(row["message"])
        yield row
