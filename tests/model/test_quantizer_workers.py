"""The moving means of several workers are those of one worker with all the regions."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from evilm.config.model import CodebookConfig
from evilm.model.quantizer import Quantizer


def moved(regions: slice) -> torch.Tensor:
    """The codebook after one batch, of which this process sees some regions."""
    torch.manual_seed(0)
    quantizer = Quantizer(CodebookConfig(num_codes=8, code_dim=4, update="ema", ema_decay=0.5))
    vectors = F.normalize(torch.randn(1, 40, 4), dim=-1)
    quantizer(vectors[:, regions])
    return quantizer.codebook.detach()


def work(rank: int, folder: str) -> None:
    """One of two workers, with half of the regions."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(moved(slice(20 * rank, 20 * rank + 20)), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_move_the_codebook_as_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(both[0], both[1])
    assert torch.allclose(both[0], moved(slice(0, 40)), atol=1e-6)
    assert not torch.allclose(both[0], moved(slice(0, 20)), atol=1e-3)
