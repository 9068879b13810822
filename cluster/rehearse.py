"""Rehearse the workflow on an autoscaling local cluster, kill two nodes during it, and print the nodes over time.

    python cluster/rehearse.py --preset tests/small.yaml --schedule.epochs 24

The cluster is that of `local.py`. The job is `pipelines/all.py` on the embedded corpus, with all further flags. A CPU
node is killed while videos are sharded, the GPU node while the model is trained; Ray and evilm do the rest. The exit
code is 0 if the job has finished and all nodes were removed after it.
"""

import argparse
import json
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local import LocalCluster, free_port, node_types, protect

from evilm.config.stages import STAGES

_TOP = Path(__file__).resolve().parents[1]
_ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
_ON_GPUS = [
    *("--set", "train_tokenizer.cluster.gpus_per_worker=1", "--set", "precompute_codes.cluster.gpus_per_worker=1"),
    *("--cluster.gpus-per-worker", "1"),
]


class Jobs:
    """A local cluster with its job server, and a history of its events and node counts."""

    def __init__(
        self, types: dict[str, Any] | None = None, idle_s: float = 8.0, environment: dict[str, str] | None = None
    ) -> None:
        """Start the cluster.

        Args:
            types: node types by name; default: at most two CPU nodes and one GPU node.
            idle_s: seconds without work after which a node is removed.
            environment: additional variables of all nodes; '' removes one.
        """
        quick = {"RAY_health_check_period_ms": "1000"}  # a lost node is detected after 5 s instead of 15
        dashboard = free_port()
        self.cluster = LocalCluster(
            types or node_types(cpu_nodes=2, gpu_nodes=1),
            free_port(),
            idle_s,
            dashboard,
            environment=quick | {"RAY_ADDRESS": ""} | (environment or {}),
        )
        try:
            self.cluster.wait()
            self.client = _connected(f"http://127.0.0.1:{dashboard}")
        except BaseException:
            self.cluster.stop()
            raise
        self._began, self._closed = time.monotonic(), threading.Event()
        self.history: list[tuple[float, dict[str, int], str]] = [(0.0, {}, "")]
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._closed.wait(0.5):
            if (counts := self.cluster.counts()) != self.history[-1][1]:
                self._write(counts, "")

    def _write(self, counts: dict[str, int], what: str) -> None:
        self.history.append((round(time.monotonic() - self._began, 1), counts, what))

    def note(self, what: str) -> None:
        """Record an event with the current nodes."""
        self._write(self.history[-1][1], what)

    def submit(self, stage: str, *flags: str) -> str:
        """Start a command without a working dir, like on nodes with the package in their image; return the job's id."""
        command = shlex.join([sys.executable, str(_TOP / STAGES[stage].folder / f"{stage}.py"), *flags])
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "OMP_NUM_THREADS": "1"}
        return str(self.client.submit_job(entrypoint=command, runtime_env={"env_vars": variables}))

    def log(self, job: str) -> str:
        """Return the output of a job."""
        return str(self.client.get_job_logs(job))

    def until(self, what: Callable[[], Any], job: str, timeout_s: float = 600) -> None:
        """Wait until `what` is true while the job runs.

        Raises:
            RuntimeError: the job ended before, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not what():
            if self.client.get_job_status(job) in _ENDED:
                raise RuntimeError(f"the job ended too early\n{self.log(job)[-3000:]}")
            self._late(deadline, job)
            time.sleep(0.05)

    def ended(self, job: str, timeout_s: float = 900) -> str:
        """Wait for the end of a job; return SUCCEEDED, FAILED or STOPPED."""
        deadline = time.monotonic() + timeout_s
        while (status := self.client.get_job_status(job)) not in _ENDED:
            self._late(deadline, job)
            time.sleep(0.2)
        return str(status.value)

    def _late(self, deadline: float, job: str) -> None:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no progress; nodes over time:\n{self.table()}\n{self.log(job)[-2000:]}")

    def summary(self, job: str) -> dict[str, Any]:
        """Parse the last line printed by a command.

        Raises:
            RuntimeError: the job did not succeed.
        """
        if (status := self.ended(job)) != "SUCCEEDED":
            raise RuntimeError(f"the job ended as {status}\n{self.log(job)[-3000:]}")
        return dict(json.loads([line for line in self.log(job).splitlines() if line.startswith("{")][-1]))

    def kill(self, kind: str, why: str) -> None:
        """Kill a node of a type."""
        node = next(node for node, found in self.cluster.nodes().items() if found == kind)
        self.cluster.kill_node(node)
        self.note(f"a {kind} node is switched off: {why}")

    def empty(self, timeout_s: float = 240) -> bool:
        """Check that all nodes are removed after a while without work."""
        deadline = time.monotonic() + timeout_s
        while self.history[-1][1] and time.monotonic() < deadline:
            time.sleep(0.5)
        return not self.history[-1][1]

    def table(self) -> str:
        """Format the history: seconds, nodes by type, events."""
        kinds = sorted({kind for _, counts, _ in self.history for kind in counts})
        lines = ["".join([f"{'s':>7}", *(f"{kind:>5}" for kind in kinds)])]
        for seconds, counts, what in self.history:
            lines.append("".join([f"{seconds:7.1f}", *(f"{counts.get(kind, 0):5d}" for kind in kinds), f"  {what}"]))
        return "\n".join(line.rstrip() for line in lines)

    def close(self) -> None:
        """Stop all nodes."""
        self._closed.set()
        self._watcher.join()
        self.cluster.stop()


def _connected(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient  # only after RAY_AUTH_MODE is set

    deadline = time.monotonic() + 240
    while True:
        try:
            client = JobSubmissionClient(address)
            client.list_jobs()
            return client
        except (ConnectionError, RuntimeError):  # the job server starts after the head
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def rehearse(jobs: Jobs, root: Path, preset: str, *flags: str) -> dict[str, Any]:
    """Run the workflow, kill a node in each of its halves, and return the job's summary.

    Raises:
        RuntimeError: the job failed, or was too quick to kill a node.
    """
    small = ["--set", "shard_videos.sampling.shard_clips=4"]  # many shards, to kill a node in between
    job = jobs.submit("all", "--preset", preset, "--root", str(root), *_ON_GPUS, *small, *flags)
    jobs.note("the workflow is submitted")
    commits, frames, model = root / "frames" / "commits", root / "frames" / "manifest.json", root / "model"
    jobs.until(lambda: len(list(commits.glob("*"))) >= 3, job)
    if frames.exists():
        raise RuntimeError("all videos were cut before a node was switched off")
    jobs.kill("cpu", f"{len(list(commits.glob('*')))} shards are saved")
    jobs.until(frames.exists, job)
    jobs.note("all videos are cut")
    jobs.until(lambda: list(model.glob("checkpoints/step_*")), job)
    jobs.kill("gpu", f"checkpoint {max(path.name[:13] for path in model.glob('checkpoints/step_*'))} is saved")
    if (model / "summary.json").exists():
        raise RuntimeError("the model was finished before its node was switched off; name a longer --schedule.epochs")
    summary = jobs.summary(job)
    jobs.note("the workflow is done")
    return summary


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="tiny", help="preset of pipelines/all.py")
    parser.add_argument("--root", type=Path, help="output folder of the workflow; default: a new temporary folder")
    parser.add_argument("--cpu-nodes", type=int, default=2, help="maximum number of nodes without GPU")
    parser.add_argument("--gpu-nodes", type=int, default=1, help="maximum number of nodes with a simulated GPU")
    parser.add_argument("--idle-s", type=float, default=8.0, help="seconds without work after which a node is removed")
    given, flags = parser.parse_known_args()  # all other flags are the workflow's
    try:
        protect()
    except RuntimeError as error:
        parser.error(str(error))
    root = (given.root or Path(tempfile.mkdtemp(prefix="evilm-rehearsal-"))).resolve()
    if root.exists() and any(root.iterdir()):
        parser.error(f"--root {root} is not empty; name a new folder, so that there is work to rehearse")
    jobs = Jobs(node_types(given.cpu_nodes, given.gpu_nodes), given.idle_s)
    try:
        summary = rehearse(jobs, root, given.preset, *flags)
        gone = jobs.empty()
        print(jobs.table())
        print(json.dumps({"root": str(root), "nodes_gone": gone, "seconds": summary["seconds"], **summary["model"]}))
        return 0 if gone else 1
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        jobs.close()


if __name__ == "__main__":
    raise SystemExit(main())
