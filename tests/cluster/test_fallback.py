"""Where spot nodes stay pending, the autoscaler turns to the on-demand group: what kuberay/cluster.yaml relies on."""

import os
import subprocess
import sys
import time

import pytest
import yaml
from local import LocalCluster, free_port

from helpers.paths import ROOT

_TIMEOUT = "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
_WORK = "import ray; ray.init(log_to_driver=False); ray.get(ray.remote(lambda: 0).options(num_gpus=1).remote())"


@pytest.mark.long
def test_pending_spot_group_falls_back_to_on_demand() -> None:
    spec = yaml.safe_load((ROOT / "cluster" / "kuberay" / "cluster.yaml").read_text())["spec"]
    groups = [group for group in spec["workerGroupSpecs"] if group["groupName"].startswith("gpu-")]
    assert _TIMEOUT in {entry["name"] for entry in spec["autoscalerOptions"]["env"]}
    types = {
        group["groupName"]: {
            "resources": {"CPU": 1, "GPU": 1},
            "min_workers": group["minReplicas"],
            "max_workers": group["maxReplicas"],
            "priority": group["priority"],
        }
        for group in groups
    }
    # The head, and the node that does come, have to be there within this time too, or they would be passed over.
    environment = {"PYTHONPATH": str(ROOT / "tests"), _TIMEOUT: "30"}
    cluster = LocalCluster(
        types, free_port(), provider="helpers.pending_spot.PendingSpotProvider", environment=environment
    )
    try:
        cluster.wait()
        driver = subprocess.Popen([sys.executable, "-c", _WORK], env={**os.environ, "RAY_ADDRESS": cluster.address})
        deadline = time.monotonic() + 240
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        driver.kill()
        assert driver.wait() == 0, cluster.log("monitor*")[-3000:]
        log = cluster.log("monitor.log")
        first = {name: log.find(f"Launching 1 nodes of type {name}") for name in types}
        assert 0 < first["gpu-spot"] < first["gpu-ondemand"]
    finally:
        cluster.stop()
