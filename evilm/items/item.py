"""One row of a downstream task, and the Parquet tables that hold them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Kind = Literal["answer", "choice", "retrieval", "label"]
"""How a task is solved: an answer in words, one of several options, the right text or video, a class."""

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),  # of the frame shards
        pa.field("text", pa.string(), nullable=False),  # question, caption or paragraph; '' for labels
        pa.field("options", pa.list_(pa.string()), nullable=False),  # of a choice, else empty
        pa.field("answer", pa.string(), nullable=False),  # word, right option, or class; '' for retrieval
        pa.field("label", pa.int32(), nullable=False),  # of the answer among options, answers or classes; -1 outside
        pa.field("type", pa.string(), nullable=False),  # of the question, for tables of errors
    ]
)


@dataclass(frozen=True)
class Item:
    """A question, choice, text or label about one clip."""

    split: str
    item_id: str
    clip_id: str
    text: str = ""
    answer: str = ""
    options: tuple[str, ...] = ()
    type: str = ""
    file: str = ""
    """Path of the video in the official distribution, if it is in a folder there; its stem is the clip's id."""
    video: str = ""
    """Id of the video that the clip is cut from, if clip ids add a span to it."""


def to_table(items: Iterable[Item], labels: dict[str, int]) -> pa.Table:
    """Build the table of a split.

    `labels` has the index of each answer or class; for a choice the index is that of the right option.
    """
    rows = [
        {
            "item_id": item.item_id,
            "clip_id": item.clip_id,
            "text": item.text,
            "options": list(item.options),
            "answer": item.answer,
            "label": item.options.index(item.answer) if item.options else labels.get(item.answer, -1),
            "type": item.type,
        }
        for item in items
    ]
    return pa.Table.from_pylist(rows, SCHEMA)
