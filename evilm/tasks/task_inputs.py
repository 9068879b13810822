"""Find or build the items of a downstream task, for fine-tuning and for its benchmark."""

from evilm.config.stages import Benchmark, BuildItems, Finetune
from evilm.errors import ConfigError
from evilm.io import storage
from evilm.items.build_items import build_items
from evilm.items.item_tables import ItemsManifest
from evilm.shards import FrameManifest, pinned
from evilm.tracking.track_run import track

_CORPUS_FOLDER = {"tgif-action": "tgif-qa", "tgif-transition": "tgif-qa", "tgif-frame": "tgif-qa"}
"""Folder of a task in the annotations of the embedded corpus, where it isn't called as the task."""


def variant(config: Finetune | Benchmark) -> str:
    """Return the beginning of the names of a task's folders, such as `msrvtt-retrieval-7k` or `hmdb51-fold2`."""
    settings, task = config.items, config.task.rsplit(":")[-1].lower().replace("_", "-")
    if task == "msrvtt-retrieval" and settings.protocol != type(settings)().protocol:
        return f"{task}-{settings.protocol}"
    return f"{task}-fold{settings.fold}" if task == "hmdb51" and settings.fold > 1 else task


def find_items(config: Finetune | Benchmark, frames: FrameManifest) -> ItemsManifest:
    """Return the items of the task: those named, or built from annotations, by default from the embedded corpus's.

    Raises:
        ConfigError: the items are of another task, or there are no annotations.
    """
    root = storage.absolute(config.root)
    place = config.task_items
    if not place:
        folder = storage.join(root, "corpus", "annotations", _CORPUS_FOLDER.get(config.task, config.task))
        annotations = config.annotations or folder
        if not storage.list_names(annotations):
            raise ConfigError(
                f"{annotations} has no annotations of {config.task}; name their folder with --annotations, or finished "
                "items with --task-items"
            )
        place = storage.join(root, f"{variant(config)}-items")
        settings = {"task": config.task, "annotations": annotations, "out": place}
        settings |= {"frames": pinned(frames.uri, frames.fingerprint)}
        tracking = config.tracking.model_copy(update={"run_name": "", "parent": ""})
        shared = {"items": config.items, "take_over": config.take_over, "tracking": tracking}
        try:
            track("build_items", build_items, BuildItems.model_validate(settings | shared))
        except ConfigError as error:
            can_overwrite = "--overwrite" in str(error)  # which here would be that of the training or benchmark
            advice = " (to overwrite its output, run pipelines/build_items.py)" if can_overwrite else ""
            raise ConfigError(f"build_items, to build {place}: {error}{advice}") from None
    items = ItemsManifest.load(place)
    if items.task != config.task:
        raise ConfigError(f"{place} holds items of {items.task}, not of {config.task}; name other --task-items")
    return items
