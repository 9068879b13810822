"""torch.compile of the student: one graph without breaks, compiled once for all batches, none for the evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evilm.train.train_state import compile_objective
from evilm.train.validation import evaluate
from helpers import gpu_models as small


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.long
@pytest.mark.usefixtures("group")
def test_student_of_several_workers_compiles_to_one_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def gradients(is_compiled: bool) -> list[float]:
        objective = small.pretrain_objective()
        if is_compiled:
            torch._dynamo.reset()
            compile_objective(objective, backend=keep)
        shared = torch.nn.parallel.DistributedDataParallel(objective, bucket_cap_mb=1)
        found = []
        for clips in (12, 9, 14):
            shared.zero_grad()
            sum(term.mean for term in shared(small.pretrain_batch(clips, 0, jitter=0.3)).values()).backward()
            found.append(sum(float(p.grad.norm()) for p in objective.parameters() if p.grad is not None))
        return found

    assert gradients(is_compiled=True) == gradients(is_compiled=False)
    assert len(graphs) == 1, f"{len(graphs)} graphs"


@pytest.mark.long
def test_student_compiles_to_one_graph_reused_by_evaluation() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    objective = small.pretrain_objective()
    state, train_step = small.make_state(objective, small.settings(), "cpu")
    batches = [[small.pretrain_batch(clips, epoch, jitter=0.3)] for epoch, clips in enumerate((12, 9, 14))]
    eager = small.run(train_step, batches, torch.device("cpu"))
    objective = small.pretrain_objective()
    state, train_step = small.make_state(objective, small.settings(), "cpu")
    compile_objective(objective, backend=keep)  # as TrainState does, with a backend that takes no time
    compiled = small.run(train_step, batches, torch.device("cpu"))
    assert len(graphs) == 1, f"{len(graphs)} graphs: batches of other sizes were compiled anew"
    assert compiled == eager
    loader: Any = small.Held([small.pretrain_batch(6, -1), small.pretrain_batch(3, -1)])
    found = evaluate(state.finished, loader, torch.device("cpu"), 1, state.autocast)
    assert found["match_auc"] > 0
    assert len(graphs) == 1, "the evaluation was compiled"
