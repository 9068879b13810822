"""Batches on the device of a training: on a GPU each is copied on a stream of its own, while the step before runs."""

from collections.abc import Iterable, Iterator

import torch

from evilm.dataloader.collate import Batch
from evilm.train.timing import StepTimer


def on_device(batches: Iterable[Batch], device: torch.device, timer: StepTimer | None = None) -> Iterator[Batch]:
    """Yield batches on `device`.

    The host asks for a batch as soon as it has queued the step before, so the copy from page-locked memory runs beside
    that step; the step that uses the batch waits for its copy on the device alone.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    stream = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(stream):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            there = batch.to(device)
            ended.record()
        compute = torch.cuda.current_stream(device)
        compute.wait_event(ended)
        there.record_stream(compute)
        if timer:
            timer.copied(began, ended)
        yield there
