"""Measure the gain and cost of each added Ray Train worker at a constant global batch.

    python benchmarks/scaling.py --json scaling.json

The tiny model on shards and codes, with one torch thread per worker and 32 clips per step over all workers. Every
sample is a separate run under Ray Train: from the call of `fit` to the start of the workers' function (start), to the
end of the first step (first step), and after a few more, measured steps. `all_reduce` reduces a tensor as large as all
gradients, by itself.

Mind the number of cores: more workers share them, so the best possible speed is min(workers, cores) times that of one
worker, and less if the loaders' threads, two per worker, have no cores of their own.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Bench, Sample, Spread, count, flags

os.environ.setdefault("PYTHONWARNINGS", "ignore")  # Ray's workers would warn in every run
from evilm.cluster import connect
from evilm.io.text_table import bytes_as_text, text_table

_BATCH = 32
_WARM_UP = 4
"""Uncounted steps after the first: memory is still being allocated, and the first row groups are read."""


def main() -> None:
    """Run each number of workers in turn, print and save."""
    parser = flags(__doc__ or "", rounds=3)
    parser.add_argument("--workers", type=count, nargs="+", default=[1, 2, 4], help="numbers of workers (1 2 4)")
    parser.add_argument("--steps", type=count, default=40, help="measured steps (40)")
    chosen = parser.parse_args()
    if any(_BATCH % world for world in chosen.workers):
        parser.error(f"--workers {chosen.workers}: use divisors of the {_BATCH} clips per step")
    steps, rounds = (4, 1) if chosen.quick else (chosen.steps, chosen.rounds)
    worlds = [1, *sorted(set(chosen.workers) - {1})]
    bench = Bench(f"scaling: tiny, {_BATCH} clips per step", rounds, warmup=0, unit="clips")
    seen: dict[int, list[dict[str, Any]]] = {world: [] for world in worlds}
    with tempfile.TemporaryDirectory(prefix="evilm-scaling-") as folder:
        from steps import prepare

        prepare(Path(folder) / "data", "tiny", _BATCH, threads=1, precision="auto")
        connect(min_cpus=max(worlds))
        for world in worlds:
            bench.add(_name(world), lambda world=world: _sample(world, steps, Path(folder), seen[world]))
        bench.run()
    for world in worlds[1:]:
        for per in ("wall", "cpu"):
            bench.ratio(_name(world), _name(1), per)
    bench.notes["cores"] = cores = len(os.sched_getaffinity(0))
    bench.notes["runs"] = seen
    table = as_table(seen, cores)
    _print(bench, table)
    bench.save(chosen.json)


def _name(world: int) -> str:
    return f"{world} worker{'s' if world > 1 else ''}"


def _sample(world: int, steps: int, folder: Path, seen: list[dict[str, Any]]) -> Sample:
    """Run once under Ray Train."""
    import ray.train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": str(folder / "data"), "steps": steps},
        scaling_config=ray.train.ScalingConfig(num_workers=world, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name=f"{world}-{len(seen)}", storage_path=str(folder / "runs")),
    )
    began = time.time()
    found: dict[str, Any] = dict(trainer.fit().return_value or {})
    ended = time.time()
    steps_s = found.pop("steps_s")
    seen.append(
        found
        | {
            "start_s": found.pop("entered") - began,
            "first_step_s": found.pop("first") - began,
            "end_s": ended - found.pop("left"),
            "steps_s": steps_s,
        }
    )
    return Sample(steps * _BATCH, found["cpu_s"], sum(steps_s))


def train(config: dict[str, Any]) -> dict[str, Any]:
    """Train in each worker; the driver receives the result of rank 0."""
    entered = time.time()
    import ray.train
    import torch
    import torch.distributed as dist
    from steps import TrainingWorker, settings_of

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settings = settings_of("tiny", _BATCH, 1, "auto", Path(config["folder"]), world)
    worker = TrainingWorker(settings, rank, world)
    batches = worker.fed(_WARM_UP + config["steps"])
    worker.train(next(batches))
    first = time.time()
    for _ in range(_WARM_UP):
        worker.train(next(batches))
    cpu, steps_s = time.process_time(), []
    for batch in batches:
        began = time.perf_counter()
        worker.train(batch)
        steps_s.append(time.perf_counter() - began)
    left = time.time()
    spent = torch.tensor([time.process_time() - cpu])
    parameters = sum(p.numel() for p in worker.objective.parameters() if p.requires_grad)
    reduce_s = []
    if world > 1:
        dist.all_reduce(spent)
        like_gradients = torch.zeros(parameters, device=worker.device)
        for _ in range(6):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(like_gradients)
            reduce_s.append(time.perf_counter() - began)
    return {
        "entered": entered,
        "first": first,
        "left": left,
        "steps_s": steps_s,
        "cpu_s": float(spent),
        "all_reduce_s": reduce_s[1:],
        "gradient_bytes": 4 * parameters,
    }


def as_table(seen: dict[int, list[dict[str, Any]]], cores: int) -> str:
    """Format start, steps and exchange by number of workers, and the cost of each worker beyond the first."""
    alone = seen[1]
    rows = []
    for world, runs in seen.items():
        step = Spread.of([_median(run["steps_s"]) for run in runs])
        cpu = Spread.of([run["cpu_s"] / len(run["steps_s"]) for run in runs])
        pairs = list(zip(alone, runs, strict=True))
        faster = Spread.of([_median(one["steps_s"]) / _median(run["steps_s"]) for one, run in pairs])
        more_cpu = Spread.of([run["cpu_s"] / one["cpu_s"] for one, run in pairs])
        reduce = [value for run in runs for value in run["all_reduce_s"]]
        added = world - 1
        start = Spread.of([run["first_step_s"] for run in runs]).median
        rows.append(
            (
                f"{world}{' (shared cores)' if world > cores else ''}",
                f"{Spread.of([run['start_s'] for run in runs]).median:.1f}",
                f"{start:.1f}",
                f"{(start - Spread.of([run['first_step_s'] for run in alone]).median) / added:+.1f}" if added else "",
                f"{1e3 * step.median:.0f} ({1e3 * step.min:.0f} .. {1e3 * step.max:.0f})",
                f"{faster.median:.2f} of {min(world, cores)}",
                f"{1e3 * _median(reduce):.1f}" if reduce else "",
                f"{1e3 * cpu.median:.0f}",
                f"{(more_cpu.median - 1) / added:+.1%}" if added else "",
            )
        )
    header = ("workers", "start s", "first step s", "a worker", "step ms", "faster", "all_reduce ms", "CPU ms/step",
              "a worker")  # fmt: skip
    size = bytes_as_text(alone[0]["gradient_bytes"])
    return text_table(header, rows, right=range(1, 9)) + f"\ngradients: {size}; cores: {cores}"


def _median(values: list[float]) -> float:
    return Spread.of(values).median


def _print(bench: Bench, table: str) -> None:
    runs = bench.notes.pop("runs")  # only in the file
    bench.print()
    bench.notes["runs"] = runs
    print("\nsteps and starts, medians of the runs; `a worker` is the increase by each one beyond the first")
    print(table)


if __name__ == "__main__":
    main()
