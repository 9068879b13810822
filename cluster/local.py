"""Run a small copy of the cloud clusters on one machine: a head without tasks, and nodes that scale with the work.

    python cluster/local.py                       # runs until Ctrl-C; prints the nodes when they change
    export RAY_ADDRESS=127.0.0.1:6399 RAY_AUTH_MODE=token EVILM_PRETEND_GPUS=1      # in another shell
    python pipelines/shard_videos.py --preset tiny --manifest clips.csv --videos clips/ --out runs/my/frames

Ray's own autoscaler makes the decisions; its fake provider starts every "node" as another set of Ray processes on this
machine. GPUs are simulated (a resource count, no hardware). Use it to try job files and autoscaling at no cost.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

_HEAD_TYPE = "ray.head.default"  # the fake provider expects this name
HEAD_ID = "f" * 51 + "00000"
_PROVIDER = "fake_nodes.FakeNodes"
_FULL_STOP_S = 2
_SAY_EVERY_S = 10
_MEMORY = 4 << 30
"""Bytes for tasks on a node; without it no task that asks for memory would get a node."""


def node_types(cpu_nodes: int, gpu_nodes: int, cpus: int = 2) -> dict[str, Any]:
    """Build small versions of the cloud files' groups, `cpu` and `gpu`."""
    return {
        "cpu": {"resources": {"CPU": cpus, "memory": _MEMORY}, "min_workers": 0, "max_workers": cpu_nodes},
        "gpu": {"resources": {"CPU": cpus, "GPU": 1, "memory": _MEMORY}, "min_workers": 0, "max_workers": gpu_nodes},
    }


def autoscaling_config(types: dict[str, Any], port: int, idle_s: float, provider: str = _PROVIDER) -> dict[str, Any]:
    """Build the file for `ray start --autoscaling-config` with everything that `ray up` would fill in.

    Args:
        types: node types by name, with resources and limits.
        port: port of the head.
        idle_s: seconds without work after which a node is removed.
        provider: class that starts and stops nodes.
    """
    workers = {name: {**settings, "node_config": {}} for name, settings in types.items()}
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    lists += ("head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter")
    return {
        "cluster_name": "local",
        "max_workers": sum(settings["max_workers"] for settings in types.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": provider,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "available_node_types": {_HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}} | workers,
        "head_node_type": _HEAD_TYPE,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
    } | {name: [] for name in lists}


def free_port() -> int:
    """Find an unused port outside of the range of Ray's workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


class LocalCluster:
    """A separate head with the autoscaler; stops exactly the processes that it started."""

    def __init__(
        self,
        types: dict[str, Any],
        port: int = 6399,
        idle_s: float = 15.0,
        dashboard_port: int = 0,
        provider: str = _PROVIDER,
        environment: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Start the head without waiting; see `wait`.

        Args:
            types: node types by name, as from `node_types`.
            port: port of the head, outside of 10002 to 19999, the range of Ray's workers.
            idle_s: seconds without work after which a node is removed.
            dashboard_port: port of dashboard and job server; 0 starts none.
            provider: class that starts and stops nodes.
            environment: additional variables of all nodes; '' removes one.
            config: complete content for `--autoscaling-config`, instead of one from `types` and `provider`.

        Raises:
            RuntimeError: something else listens at one of the ports.
        """
        for flag, used in (("--port", port), ("--dashboard-port", dashboard_port)):
            with socket.socket() as probe:
                if used and probe.connect_ex(("127.0.0.1", used)) == 0:
                    raise RuntimeError(f"port {used} is in use, perhaps by another cluster: use another {flag}")
        self.address = f"127.0.0.1:{port}"
        self._nodes: dict[str, str] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="evl", dir="/tmp"))  # short, since Ray creates sockets below it
        scaling = self.folder / "autoscaling.json"
        scaling.write_text(json.dumps(config or autoscaling_config(types, port, idle_s, provider)))
        dashboard = [f"--dashboard-port={dashboard_port}"] if dashboard_port else []
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
        command += [f"--include-dashboard={bool(dashboard_port)}".lower(), *dashboard, "--node-ip-address=127.0.0.1"]
        command += ["--num-cpus=0", "--num-gpus=0", "--object-store-memory=150000000", f"--temp-dir={self.folder}"]
        command += [f"--autoscaling-config={scaling}", "--disable-usage-stats"]
        # Set every port with a fixed default, since another cluster on this machine may use it.
        ports = ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
        command += [f"--{name}-port={free_port()}" for name in ports]
        self._environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self._environment |= {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            "EVILM_PRETEND_GPUS": "1",
            "EVILM_FAKE_NODES": str(self.folder / "n"),
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
        } | (environment or {})
        paths = [str(Path(__file__).resolve().parent), self._environment.get("PYTHONPATH", "")]  # of the provider
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._environment = {name: value for name, value in self._environment.items() if value}
        with (self.folder / "head.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, timeout_s: float = 240, say: Callable[[str], None] = lambda _: None) -> None:
        """Wait until the head answers.

        Args:
            timeout_s: longest wait.
            say: called every ten seconds with a line about the wait.

        Raises:
            RuntimeError: the head ended or did not answer in time.
        """
        began = said = time.monotonic()
        while not self.nodes():
            now = time.monotonic()
            self.check()
            if now > began + timeout_s:
                raise RuntimeError(f"the head at {self.address} did not answer in {timeout_s:.0f} s; try again later")
            if now > said + _SAY_EVERY_S:
                said = now
                say(f"still starting the head ({now - began:.0f} s)")
            time.sleep(0.5)

    def check(self) -> None:
        """Raise `RuntimeError` if the head ended, with the last error in its log, or else its last line."""
        if self.process.poll() is not None:
            log = (self.folder / "head.log").read_text(errors="replace").split("\n")
            lines = [line.strip() for line in log if line.strip()] or ["its log is empty"]
            last = [line for line in lines if "Error" in line or "error" in line] or lines
            raise RuntimeError(f"the head at {self.address} ended: {last[-1][:300]}")

    def nodes(self) -> dict[str, str]:
        """Return the type of each running node by node id; empty if the head does not listen.

        A head that is too busy to answer has the nodes that it had when it last did.
        """
        from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] compiled, has no stub

        host, port = self.address.split(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return {}
        try:
            found = GcsClient(address=self.address).get_all_node_info(timeout=5)
        except Exception as error:  # its errors have no common base
            print(f"the head is slow to answer ({type(error).__name__})", file=sys.stderr)
            return self._nodes
        self._nodes = {key.hex(): info.node_type_name or _HEAD_TYPE for key, info in found.items() if info.state == 0}
        return self._nodes

    def counts(self) -> dict[str, int]:
        """Count the running nodes by type, without the head."""
        types = sorted(kind for kind in self.nodes().values() if kind != _HEAD_TYPE)
        return {kind: types.count(kind) for kind in types}

    def log(self, pattern: str) -> str:
        """Read the logs of the session that match a pattern, e.g. `monitor.log`."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(f"session_*/logs/{pattern}"))

    def family(self) -> list[psutil.Process]:
        """List all processes of all nodes."""
        try:
            return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill_node(self, node_id: str) -> None:
        """Kill all processes of one node, as if its machine were switched off."""
        raylets = [p for p in self.family() if p.name() == "raylet" and f"--node_id={node_id}" in " ".join(p.cmdline())]
        for raylet in raylets:
            for process in [*raylet.children(recursive=True), raylet]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def stop(self) -> None:
        """Stop all nodes and delete their files."""
        for process in (family := self.family()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=_FULL_STOP_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def protect() -> str:
    """Require a token, since Ray's ports are open to the network and anyone who reaches them can run code.

    Returns:
        RAY_AUTH_MODE, unchanged or as set here.

    Raises:
        RuntimeError: the token can't be stored.
    """
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode == "token":
        command = [Path(sys.executable).with_name("ray"), "get-auth-token", "--generate"]  # keeps an existing one
        made = subprocess.run(command, capture_output=True, text=True, umask=0o077, check=False)
        if made.returncode:
            reason = made.stderr.strip().rpartition("\n")[2]
            raise RuntimeError(f"cannot store a token: {reason}; set HOME to a folder of yours, or set RAY_AUTH_TOKEN")
        token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        if "RAY_AUTH_TOKEN" not in os.environ and token.is_file():
            token.chmod(0o600)  # Ray itself creates it for everybody to read
    return mode


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu-nodes", type=int, default=3, help="maximum number of nodes without GPU")
    parser.add_argument("--gpu-nodes", type=int, default=2, help="maximum number of nodes with a simulated GPU")
    parser.add_argument("--cpus", type=int, default=2, help="CPUs per node, as a resource count")
    parser.add_argument("--idle-s", type=float, default=30.0, help="seconds without work after which a node is removed")
    parser.add_argument("--port", type=int, default=6399)
    parser.add_argument("--dashboard-port", type=int, default=8265, help="port of dashboard and job server; 0 for none")
    given = parser.parse_args()
    cluster = None
    try:
        mode, types = protect(), node_types(given.cpu_nodes, given.gpu_nodes, given.cpus)
        cluster = LocalCluster(types, given.port, given.idle_s, given.dashboard_port)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        print(f"starting a head at {cluster.address}, with its log in {cluster.folder}", flush=True)
        cluster.wait(say=lambda line: print(line, flush=True))
        print(f"ready: export RAY_ADDRESS={cluster.address} RAY_AUTH_MODE={mode} EVILM_PRETEND_GPUS=1", flush=True)
        shown: dict[str, int] | None = None
        while True:
            cluster.check()
            if (counts := cluster.counts()) != shown:
                shown = counts
                print(time.strftime("%H:%M:%S"), json.dumps(counts), flush=True)
            time.sleep(1)
    except (RuntimeError, OSError, OverflowError) as error:  # the last is a port above 65535
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if cluster:
            cluster.stop()


if __name__ == "__main__":
    raise SystemExit(main())
