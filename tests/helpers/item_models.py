"""Small models with heads of downstream tasks, and batches for them."""

import numpy as np
import torch

from evilm.config.finetune_command import HeadConfig
from evilm.dataloader.item_collate import ItemBatch, ItemCollate
from evilm.dataloader.item_loader import ItemRows
from evilm.model.task_model import TaskModel, TaskSpec
from evilm.objectives.item_objective import ItemObjective
from evilm.text.vocab import SPECIALS, Vocab
from helpers.small_models import build_student, frames

ENCODER = "test_convnext3"
"""A video encoder of few layers: these models are about their heads."""
VOCAB = Vocab([*SPECIALS, *(f"w{k}" for k in range(45))])
CASES = {
    "answer, mlp": ("answer", ("w1", "w2"), {}),
    "answer, mlm": ("answer", ("w1", "w2"), {"type": "mlm"}),
    "choice, mlp": ("choice", (), {}),
    "choice, match": ("choice", (), {"type": "match"}),
    "label, mlp": ("label", ("run", "jump"), {}),
}
"""Kind, labels and settings of the head."""


def item_rows(**changes) -> ItemRows:
    """Three items about two clips."""
    values = {
        "epoch": 0, "item_ids": ["a", "b", "c"], "clip_ids": ["x", "x", "y"], "texts": ["w1", "w2 w3", "w4"],
        "options": [[], [], []], "labels": np.array([0, -1, 1]), "frames": frames(2).numpy(),
        "clip_of": np.array([0, 0, 1]), "first_item": 0, "step_items": 3,
    }  # fmt: skip
    return ItemRows(**(values | changes))


def item_objective(kind: str, labels: tuple[str, ...] = (), **head) -> ItemObjective:
    """A small model with a head for this kind, in eval mode."""
    torch.manual_seed(0)
    settings = HeadConfig(**({"dropout": 0.0, "hidden": 8} | head))
    return ItemObjective(TaskModel(build_student(video_encoder=ENCODER), TaskSpec("t", kind, labels, settings), VOCAB))


def case(name: str) -> tuple[ItemObjective, ItemBatch]:
    """One of `CASES` with a batch."""
    kind, labels, head = CASES[name]
    objective = item_objective(kind, labels, **head)
    options = [["w5", "w6"], ["w8", "w9 w3"], ["w11", "w12"]] if kind == "choice" else [[], [], []]
    pieces = objective.head.pieces.numpy() if head.get("type") == "mlm" else None
    rows = item_rows(options=options, labels=np.array([0, 1, 1]))
    return objective, ItemCollate(VOCAB, 12, kind, pieces)(rows)
