"""Fixtures of all tests: one Ray cluster per session, the shared real data where it is there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# Before the first import of ray, mlflow or torch; inherited by Ray's workers, which unpickle functions of test modules.
os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE), str(_HERE.parent), os.environ.get("PYTHONPATH", "")])
for _name, _value in {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}.items():
    os.environ.setdefault(_name, _value)
os.environ.pop("RAY_ADDRESS", None)

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and annotation files that lie beside the checkout, or a skip."""
    folder = _HERE.parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared real data are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """The session's Ray cluster: four logical CPUs on whatever the machine has."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=256 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield ray
    ray.shutdown()
