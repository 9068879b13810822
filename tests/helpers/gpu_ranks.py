"""One rank of a training that several processes share; imported by name in each of them."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from evilm.dataloader.sampler import micro_batch_slice
from evilm.train.micro_batches import micro_batches_of
from evilm.train.validation import evaluate
from helpers import gpu_models as small
from helpers.gpu_waits import WARM_UP
from helpers.pretend.card import PretendCard

MICRO_BATCHES, CLIPS, STEPS = 3, 7, WARM_UP + 1


def start_ranks(world: int, device: str, kind: str, folder: Path) -> list[dict[str, float]]:
    """Run `train_ranks` in a process for each rank, and return the metrics of rank 0."""
    how = "spawn" if device == "cuda" else "fork"  # CUDA does not survive a fork; else it saves seconds of imports
    arguments = (world, device, kind, str(folder / "ranks"))
    torch.multiprocessing.start_processes(train_ranks, arguments, world, start_method=how)
    return json.loads((folder / "ranks.json").read_text())


def train_ranks(rank: int, world: int, device: str, kind: str, place: str) -> list[dict[str, float]]:
    """Make steps of seven clips in three micro-batches, dealt to the ranks; rank 0 writes the metrics to `place`.json.

    A rank on a pretended card writes the blocking reads in its last step to `place`-reads-RANK.json.

    Args:
        rank: this process.
        world: number of processes; without others there is no process group.
        device: cpu (gloo), cuda (NCCL, a card for each rank) or pretended (a pretended card for each, over gloo).
        kind: student or tokenizer.
        place: path without ending, also that of the ranks' meeting point.
    """
    torch.set_num_threads(1)
    here = {"cpu": torch.device("cpu"), "cuda": torch.device("cuda", rank)}.get(device, torch.device("cuda", 0))
    is_group = Path(place).name == "ranks"  # also of one rank, so that one card shows that NCCL works
    if is_group:
        os.environ |= {"MASTER_ADDR": "127.0.0.1"}
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{place}", rank=rank, world_size=world)
    try:
        with PretendCard() if device == "pretended" else contextlib.nullcontext() as card:
            found, reads = _train(rank, world, here, kind, card)
        if card:
            Path(f"{place}-reads-{rank}.json").write_text(json.dumps(reads))
        if rank == 0:
            Path(f"{place}.json").write_text(json.dumps(found))
        return found
    finally:
        if is_group:
            dist.destroy_process_group()


def _train(
    rank: int, world: int, device: torch.device, kind: str, card: PretendCard | None
) -> tuple[list[dict[str, float]], list[str]]:
    """Return the metrics of the steps and of an evaluation, and the reads of the card after the first steps."""
    make, batch, settings = small.KINDS[kind]
    config = settings(
        schedule__batch_clips=3 * MICRO_BATCHES,
        schedule__gradient_accumulation_steps=MICRO_BATCHES,
        cluster__channels_last=True,
        cluster__fused=True,
    )
    mine = micro_batches_of(rank, world, MICRO_BATCHES)
    slices = [micro_batch_slice(CLIPS, number, MICRO_BATCHES) for number in mine]
    batches = [[batch(CLIPS, step, clips) for clips in slices] for step in range(STEPS)]
    if card:
        batches = [[micro_batch.pin_memory() for micro_batch in step] for step in batches]
    state, train_step = small.make_state(make(), config, device, world=world)
    metrics = small.run(train_step, batches[:WARM_UP], device, num_steps=STEPS, numbers=mine)
    if card:
        card.clear()
    metrics += small.run(train_step, batches[WARM_UP:], device, WARM_UP, STEPS, mine)
    reads = [str(read) for read in card.reads] if card else []
    loader: Any = small.Held([batch(CLIPS, -1, micro_batch_slice(CLIPS, rank, world))])
    return [*metrics, evaluate(state.finished, loader, device, world, state.autocast)], reads
