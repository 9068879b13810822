"""Settings of the items of downstream tasks."""

from typing import Any, Literal

from pydantic import Field, field_validator

from evilm.config.base import Common, Config, Incidental
from evilm.plugins import Registry

TASK_NAMES = (
    "msrvtt-retrieval", "msrvtt-qa", "msrvtt-mc", "msvd-qa", "tgif-action", "tgif-transition", "tgif-frame",
    "didemo-retrieval", "hmdb51", "kinetics-400",
)  # fmt: skip
ITEM_LAYOUTS: Registry[Any] = Registry(
    "downstream task",
    "evilm.item_layouts",
    {name: f"evilm.items.task_layouts:{name.upper().replace('-', '_')}" for name in TASK_NAMES},
)
"""Official layout (`evilm.items.task_layouts.Layout`) of each task's annotations."""


class ItemsConfig(Config):
    """Settings that turn official annotations into items."""

    protocol: Common[Literal["9k", "7k", "full"]] = "9k"
    """MSR-VTT retrieval: training list of 9,000 or 7,010 videos with the 1k-A test split, or the official splits. The
    9k list has videos that MSRVTT-QA and MSRVTT-MC test on, the 7k list has none."""
    fold: Common[int] = Field(default=1, ge=1, le=3)
    """HMDB51: which of the three official splits."""
    val_share: Common[float] = Field(default=0.05, ge=0, lt=1)
    """Share of the training videos that are set aside as val where the data set has no official one."""
    num_answers: Common[int] = Field(default=1500, ge=2)
    """Most frequent training answers that make the answer vocabulary, where the annotations bring no list."""
    max_missing_share: Common[Incidental[float]] = Field(default=0.1, ge=0, le=1)
    """Largest share of a split's videos without frames; their items are left out and counted."""


class TaskSettings(Config):
    """A downstream task and its official annotations."""

    task: Common[str] = ""
    """Data set and task: msrvtt-retrieval, msrvtt-qa, msrvtt-mc, msvd-qa, tgif-action, tgif-transition, tgif-frame,
    didemo-retrieval, hmdb51, kinetics-400, or `module:attribute` of a layout of your own (docs/downstream.md)."""
    annotations: Common[Incidental[str]] = ""
    """Folder of the official annotation files, to build the items from; '' uses those of the embedded corpus."""
    items: ItemsConfig = ItemsConfig()

    @field_validator("task")
    @classmethod
    def _is_known(cls, task: str) -> str:
        if task and task not in ITEM_LAYOUTS:
            raise ValueError(
                f"not a downstream task; use {', '.join(ITEM_LAYOUTS.names())}, or module:attribute "
                "of a layout of your own (docs/downstream.md)"
            )
        return task


class BuiltTask(TaskSettings):
    """A downstream task whose items are built if they are not named."""

    task_items: Common[Incidental[str]] = ""
    """Items that build_items wrote, in place of --annotations."""
