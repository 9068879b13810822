"""One rank of a training that several processes share; imported by name in each of them."""

import json
import os
from pathlib import Path

import gpu_models as small
import torch
import torch.distributed as dist

from evilm.data.order import part_of
from evilm.train.parts import parts_of

PARTS, CLIPS, STEPS = 3, 7, 2


def train_ranks(rank: int, world: int, device: str, kind: str, place: str) -> list[dict[str, float]]:
    """Make steps of seven clips in three micro-batches, dealt to the ranks; rank 0 writes the metrics to `place`.json.

    Args:
        rank: this process.
        world: number of processes; without others there is no process group.
        device: cpu (gloo) or cuda (NCCL, a card for each rank).
        kind: student or tokenizer.
        place: path without ending, also that of the ranks' meeting point.
    """
    torch.set_num_threads(1)
    here = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    is_group = Path(place).name == "ranks"  # also of one rank, so that one card shows that NCCL works
    if is_group:
        os.environ |= {"MASTER_ADDR": "127.0.0.1"}
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{place}", rank=rank, world_size=world)
    try:
        found = _train(rank, world, here, kind)
        if rank == 0:
            Path(f"{place}.json").write_text(json.dumps(found))
        return found
    finally:
        if is_group:
            dist.destroy_process_group()


def _train(rank: int, world: int, device: torch.device, kind: str) -> list[dict[str, float]]:
    make, batch, settings = small.KINDS[kind]
    config = settings(schedule__batch_clips=3 * PARTS, schedule__accumulate=PARTS, cluster__channels_last=True)
    mine = parts_of(rank, world, PARTS)
    slices = [part_of(CLIPS, part, PARTS) for part in mine]
    batches = [[batch(CLIPS, step, part) for part in slices] for step in range(STEPS)]
    _, updater = small.make_learner(make(), config, device, world=world)
    return small.run(updater, batches, device, parts=mine)
