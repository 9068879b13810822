"""How often codes were chosen is counted by each worker, and kept as a whole through a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from evilm.config.models import CodebookConfig, VideoTokenizerConfig
from evilm.dataloader.collate import TokenizerBatch
from evilm.model.tokenizers.semantic_vq import VideoTokenizer
from evilm.objectives.tokenizer_objective import TokenizerObjective


def _objective() -> TokenizerObjective:
    config = VideoTokenizerConfig(
        input_px=64, patch_px=32, num_frames=2, encoder_dim=16, encoder_layers=1, encoder_heads=2, decoder_dim=16,
        decoder_layers=1, decoder_heads=2, vocab_size=40,
        codebook=CodebookConfig(num_codes=16, code_dim=4, revive_below=0.9, revive_every=3),
    )  # fmt: skip
    torch.manual_seed(0)
    return TokenizerObjective(VideoTokenizer(config), config)


def _work(rank: int, folder: str) -> None:
    """One of two workers: two steps, a checkpoint, a third step; then the same from the checkpoint."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    def step(objective: TokenizerObjective, number: int) -> None:
        clips = 4 - rank  # the first worker has one more, where a step can't be cut into equal parts
        frames = torch.randint(
            0, 256, (clips, 2, 64, 64, 3), generator=torch.Generator().manual_seed(10 * number + rank)
        )
        words = torch.zeros(clips, 40, dtype=torch.bool)
        objective(TokenizerBatch(frames.to(torch.uint8), words, ["a"] * clips, first_clip=4 * rank, step_clips=7))
        objective.after_step(number, seed=0)

    unbroken = _objective()
    for number in (1, 2):
        step(unbroken, number)
    counted = unbroken.tokenizer.quantizer.usage.clone()
    dist.all_reduce(counted)
    unbroken.collect_counts()
    saved: list[Any] = [{name: tensor.clone() for name, tensor in unbroken.state_dict().items()}]  # rank 0's alone
    dist.broadcast_object_list(saved, src=0)
    resumed = _objective()
    resumed.load_state_dict(saved[0])
    if rank != 0:
        resumed.drop_counts()
    for objective in (unbroken, resumed):
        step(objective, 3)
    found = {"counted": counted, "saved": saved[0]["tokenizer.quantizer.usage"]}
    found |= {"unbroken": unbroken.tokenizer.quantizer.codebook, "resumed": resumed.tokenizer.quantizer.codebook}
    torch.save({name: tensor.detach() for name, tensor in found.items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_resumed_codebook_is_revived_as_the_unbroken_one(tmp_path: Path) -> None:
    mp.start_processes(_work, (str(tmp_path),), 2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["saved"], found["counted"]), "of both workers"
        assert int(found["counted"].sum()) == 2 * (4 + 3) * 2 * 4
        assert torch.equal(found["resumed"], found["unbroken"])
        assert not torch.equal(found["unbroken"], _objective().tokenizer.quantizer.codebook), "some codes were revived"
