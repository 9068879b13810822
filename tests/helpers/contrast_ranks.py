"""One rank of a step of contrastive training that several processes share; imported by name in each of them."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from evilm.config.finetune_command import Finetune, HeadConfig
from evilm.dataloader.item_collate import ItemBatch
from evilm.dataloader.sampler import micro_batch_slice
from evilm.model.task_model import TaskModel, TaskSpec
from evilm.objectives.item_objective import RetrievalObjective
from evilm.train.micro_batches import micro_batches_of
from evilm.train.train_state import TrainState
from helpers.item_models import ENCODER, VOCAB
from helpers.small_models import build_student, frames, words

ITEMS, STEP_ITEMS, WRONG = 10, 20, 2


def make_objective(match_weight: float = 1.0, dtype: torch.dtype = torch.float32, **changes) -> RetrievalObjective:
    """Build a retrieval objective with weights of seed 0."""
    student = build_student(0, **{"video_encoder": ENCODER, **changes}).cast(dtype).train()
    head = HeadConfig(embed_dim=16, match_weight=match_weight, num_negatives=WRONG, dropout=0.0)
    model = TaskModel(student, TaskSpec("t", "retrieval", (), head), VOCAB)
    model.head.to(dtype)
    return RetrievalObjective(model)


def make_batch(items: slice = slice(0, ITEMS), step_items: int = ITEMS) -> ItemBatch:
    """Make a batch of some of the step's items, two to a clip, each with two wrong captions."""
    ids, padding = words(step_items, 6, seed=1)
    wrong, _ = words(step_items * WRONG, 6, seed=2)
    numbers = torch.arange(step_items)[items]
    clips, clip_of = torch.unique(numbers // 2, return_inverse=True)
    count = len(numbers)
    false = wrong.view(step_items, WRONG, -1)[items].flatten(0, 1)
    return ItemBatch(
        frames=frames(step_items // 2, seed=3)[clips],
        clip_of=torch.cat([clip_of, clip_of.repeat_interleave(WRONG)]),
        input_ids=torch.cat([ids[items], false]),
        padding_mask=torch.cat([padding[items], torch.zeros(false.shape, dtype=torch.bool)]),
        labels=torch.full((count,), -1),
        labelled=torch.zeros(0, dtype=torch.int64),
        masked_at=torch.zeros(0, dtype=torch.int64),
        item_ids=[str(number) for number in numbers.tolist()],
        clip_ids=[f"c{number // 2}" for number in numbers.tolist()],
        first_item=items.start,
        step_items=step_items,
    )


def gradients(
    world: int, micro_batches: int, folder: Path, **changes
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Make one step in `world` processes; the metrics, and the gradients before they are clipped."""
    arguments = (world, micro_batches, str(folder / f"ranks-{world}-{micro_batches}"), changes)
    if world == 1:
        step_of_rank(0, *arguments)
    else:
        torch.multiprocessing.start_processes(step_of_rank, arguments, world, start_method="fork")
    found = torch.load(f"{arguments[2]}.pt", weights_only=True)
    return found["metrics"], found["gradients"]


def step_of_rank(rank: int, world: int, micro_batches: int, place: str, changes: dict) -> None:
    """Make the micro-batches of one rank; rank 0 writes what came out."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1"}
        dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world)
    try:
        settings = Finetune.model_validate({
            "optim": {"clip_norm": 0.0, "lr": 1e-3},
            "schedule": {"batch_clips": 4 * micro_batches, "gradient_accumulation_steps": micro_batches},
            "cluster": {"precision": "fp32"},
        })  # fmt: skip
        state = TrainState(make_objective(**changes), settings, torch.device("cpu"), rank, world)
        step = state.make_train_step(True, lambda count: [], None)
        mine = micro_batches_of(rank, world, micro_batches)
        batches = [make_batch(micro_batch_slice(STEP_ITEMS, k, micro_batches), STEP_ITEMS) for k in mine]
        (outcome,) = step.step(0, 10, list(mine), batches, [0.0, 0.0, 0.0, 0.0])
        found = {n: p.grad.clone() for n, p in state.objective.named_parameters() if p.grad is not None}
        if rank == 0:
            torch.save({"metrics": outcome.metrics, "gradients": found}, f"{place}.pt")
    finally:
        if world > 1:
            dist.destroy_process_group()


def whole(**changes) -> tuple[float, dict[str, torch.Tensor]]:
    """Compute loss and gradients of the whole step in one graph, without caching features."""
    from evilm.objectives.item_objective import contrast

    objective, batch = make_objective(**changes), make_batch(slice(0, STEP_ITEMS), STEP_ITEMS)
    losses, _ = contrast(objective.embed(batch), 0.05)
    loss = losses.mean()
    if "match" in objective.weights:
        loss = loss + objective._match(objective.student.encode_video(batch.frames), batch).mean
    loss.backward()
    return loss.item(), {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
