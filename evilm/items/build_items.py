"""Build the items of a downstream task from official annotations, joined with the clips that have frames."""

import csv
import hashlib
import io
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from evilm.config.base import fingerprint
from evilm.config.items import ITEM_LAYOUTS
from evilm.config.stages import BuildItems
from evilm.errors import ConfigError, ManifestError, UsageError
from evilm.io import storage
from evilm.io.outputs import Output
from evilm.items.annotation_files import EMBEDDED_MARK, Annotations
from evilm.items.item import Item, Kind, to_table
from evilm.items.item_tables import ITEMS_FILE, SPLITS, ItemsManifest, ItemsSplit
from evilm.items.task_layouts import Layout
from evilm.shards import FrameManifest, read_columns

logger = logging.getLogger(__name__)

_SHOWN = 3


def build_items(config: BuildItems) -> dict[str, Any]:
    """Write one Parquet table per split to `config.out`, or reuse the ones that exist there.

    Items of clips without frames are left out and listed in `missing.txt`; nothing takes their place.

    Returns:
        The summary: items, clips, coverage and answers inside the vocabulary by split, fingerprint.

    Raises:
        UsageError: a setting is missing.
        ManifestError: an annotation file that is missing or does not have its official layout.
        ConfigError: more clips than `max_missing_share` have no frames.
    """
    if not config.task:
        raise UsageError(f"--task is missing; use {', '.join(ITEM_LAYOUTS.names())}")
    for name, what in (("annotations", "the folder of the official files"), ("out", "a folder")):
        if not getattr(config, name):
            raise UsageError(f"--{name} is missing; name {what}")
    began, annotations = time.monotonic(), Annotations(storage.absolute(config.annotations))
    layout: Layout = ITEM_LAYOUTS.get(config.task)
    items = list(layout.read(annotations, config.items))
    labels = _labels(layout, annotations, items, config.items.num_answers)
    frames = FrameManifest.load(config.frames) if config.frames else None
    inputs = {"annotations": fingerprint(annotations.digests), "frames": frames.fingerprint if frames else ""}
    with Output(config, storage.absolute(config.out), inputs, needs=_tables) as output:
        if output.done:
            logger.info("%s is finished, reused", output.out)
            return output.done | {"reused": True}
        known = _clips_of(frames) if frames else None
        items = _as_stored(items, known or set())
        summary = _write(config, output, layout.kind, items, labels, known, annotations)
        return output.close(summary | {"reused": False, "seconds": round(time.monotonic() - began, 1)})


def _write(
    config: BuildItems,
    output: Output,
    kind: Kind,
    items: Sequence[Item],
    labels: list[str],
    known: set[str] | None,
    annotations: Annotations,
) -> dict[str, Any]:
    """Write tables, lists and manifest; the summary."""
    _refuse_repeats(items)
    _refuse_overlap(items)
    if kind == "label" and (other := {item.answer for item in items} - set(labels)):
        raise ManifestError(
            f"{config.task}: {len(other)} classes of the items are missing from the class list, e.g. {min(other)!r}; "
            "use the official list"
        )
    index, splits = {answer: place for place, answer in enumerate(labels)}, {}
    missing: list[str] = []
    for split in SPLITS:
        every = [item for item in items if item.split == split]
        if not every:
            continue
        kept = [item for item in every if known is None or item.clip_id in known]
        clips, gone = {item.clip_id for item in every}, sorted({i.clip_id for i in every} - {i.clip_id for i in kept})
        if len(gone) > config.items.max_missing_share * len(clips):
            raise ConfigError(
                f"{config.task}, split {split}: {len(gone)} of {len(clips)} videos have no frames in {config.frames} "
                f"({', '.join(gone[:_SHOWN])}, ...), items.max_missing_share = {config.items.max_missing_share:g}; "
                "shard the missing videos, or accept a larger share"
            )
        missing += [f"{split}\t{clip}" for clip in gone]
        sink = io.BytesIO()
        pq.write_table(to_table(kept, index), sink, compression="zstd")
        output.check()
        storage.write_bytes(storage.join(output.out, f"{split}.parquet"), sink.getvalue())
        answered = sum(item.answer in index for item in kept) if labels else len(kept)
        splits[split] = ItemsSplit(
            num_items=len(kept),
            num_clips=len({item.clip_id for item in kept}),
            num_missing_items=len(every) - len(kept),
            num_missing_clips=len(gone),
            ceiling=answered / max(1, len(kept)),
            sha256=hashlib.sha256(sink.getvalue()).hexdigest(),
        )
    storage.write_bytes(storage.join(output.out, "missing.txt"), "".join(f"{line}\n" for line in missing).encode())
    storage.write_bytes(storage.join(output.out, "videos.csv"), _videos_csv(items))
    is_embedded = EMBEDDED_MARK in annotations.names()
    manifest = ItemsManifest(config.task, kind, splits, tuple(labels), annotations.digests, output.out, is_embedded)
    output.check()
    storage.write_json(storage.join(output.out, ITEMS_FILE), manifest.as_json())
    for split, found in splits.items():
        logger.info("%s", found.sentence(split))
    return {
        "out": output.out,
        "inputs": output.inputs,
        "task": config.task,
        "num_labels": len(labels),
        "splits": {split: found.__dict__ for split, found in splits.items()},
        "fingerprint": manifest.fingerprint,
    }


def _tables(summary: Mapping[str, Any]) -> list[str]:
    return [ITEMS_FILE, *(f"{split}.parquet" for split in summary["splits"])]


def _labels(layout: Layout, annotations: Annotations, items: Sequence[Item], num_answers: int) -> list[str]:
    """Return answers or classes in the order of their labels; empty for choices and retrieval."""
    if layout.kind not in ("answer", "label"):
        return []
    if name := annotations.find(*layout.labels):
        return _listed(annotations, name)
    train = Counter(item.answer for item in items if item.split == "train")
    if layout.kind == "label":
        return sorted({item.answer for item in items})
    if not train:
        raise ManifestError(
            f"{annotations.uri}: no list of answers; add the training questions, or {' or '.join(layout.labels)}"
        )
    return [answer for answer, _ in sorted(train.items(), key=lambda pair: (-pair[1], pair[0]))[:num_answers]]


def _listed(annotations: Annotations, name: str) -> list[str]:
    """Read a list of answers or classes: JSON {answer: number}, CSV `id,name`, or one a line."""
    if name.endswith(".csv"):
        numbered = {row.whole_number("id", 0): row.text("name") for row in annotations.table(name, ("id", "name"))}
        return [numbered[number] for number in sorted(numbered)]
    if not name.endswith(".json"):
        return annotations.lines(name)
    numbers = annotations.json_object(name)
    placed = {numbers.whole_number(answer, 0): answer for answer in numbers.values}
    if sorted(placed) != list(range(len(numbers.values))):
        raise ManifestError(f"{name}: answer indices must be 0 to {len(numbers.values) - 1}, each used once")
    return [placed[number] for number in range(len(placed))]


def _as_stored(items: Sequence[Item], known: set[str]) -> list[Item]:
    """Name clips by their video where the frames do so, as those of the embedded corpus, and no other clip is of it."""
    spans = Counter(item.video for item in items)
    return [
        replace(item, clip_id=item.video)
        if item.clip_id not in known and item.video in known and spans[item.video] == 1
        else item
        for item in items
    ]


def _refuse_repeats(items: Sequence[Item]) -> None:
    """Check that no item is listed twice.

    Raises:
        ManifestError: it is.
    """
    repeated = [key for key, count in Counter((item.split, item.item_id) for item in items).items() if count > 1]
    if repeated:
        split, item_id = repeated[0]
        raise ManifestError(
            f"split {split}: {len(repeated)} duplicate item ids, e.g. {item_id!r}; remove the duplicates"
        )


def _refuse_overlap(items: Sequence[Item]) -> None:
    """Check that no clip is in two splits.

    Raises:
        ManifestError: one is: the model would be chosen or scored on what it was trained on.
    """
    splits: dict[str, set[str]] = {}
    for item in items:
        splits.setdefault(item.clip_id, set()).add(item.split)
    both = {clip: sorted(own) for clip, own in splits.items() if len(own) > 1}
    if both:
        clip, own = next(iter(both.items()))
        raise ManifestError(
            f"{len(both)} clips are in several splits, such as {clip} in {' and '.join(own)}; "
            "each clip may be in one split only"
        )


def _clips_of(frames: FrameManifest) -> set[str]:
    """Return the ids of all clips that have frames."""
    return {
        clip
        for shard in frames.shards
        for clip in read_columns(storage.join(frames.uri, shard.file), ["clip_id"])["clip_id"].to_pylist()
    }


def _videos_csv(items: Sequence[Item]) -> bytes:
    """Return a manifest of the videos in WebVid's layout, each once; instead of a caption it has the clip's id."""
    videos = {item.clip_id: (item.file.rpartition("/")[0], item.split) for item in items}
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    table.writerow(["videoid", "page_dir", "name", "split"])
    table.writerows([clip, folder, clip, split] for clip, (folder, split) in sorted(videos.items()))
    return sink.getvalue().encode()
