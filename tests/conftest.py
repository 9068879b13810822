"""Fixtures of all tests: one Ray cluster per pytest process, the shared real data where it is there.

Under pytest-xdist (`make test`) each process takes whole files; what takes long to build is built once for all.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
# Keep bytecode whatever the environment says. Packages are installed without, and every Ray worker and every started
# script imports torch, pandas and Ray: compiling them takes 5 to 10 CPU seconds each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
sys.path.append(str(_HERE.parent / "benchmarks"))
# Before the first import of ray, mlflow or torch; inherited by Ray's workers, which unpickle functions of test modules.
os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE), str(_HERE.parent), os.environ.get("PYTHONPATH", "")])
for _name, _value in {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor of 3 CPU seconds for each training; tests of notices set 1
    "RAY_worker_niceness": "0",  # else workers, which tests wait for, starve beside the tests of another process
    "RAY_memory_monitor_refresh_ms": "0",  # what else runs on this machine must not cost a test its workers
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}.items():
    os.environ.setdefault(_name, _value)
os.environ.pop("RAY_ADDRESS", None)
# A shell that puts the tests in the background has them ignore Ctrl-C, and whatever they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

from helpers.gates import Gate  # noqa: E402
from helpers.s3_faults import FaultyS3, Through  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and annotation files that lie beside the checkout, or a skip."""
    folder = _HERE.parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared real data are not beside this checkout")
    return folder


@pytest.hookimpl(trylast=True)  # when those that are not asked for are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist, hand out the files that take longest first, so that no process is left with one at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from helpers.sharing import longest_first

        items[:] = longest_first(items)


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of all pytest processes of this run."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def ray_local(s3_server: str) -> Iterator[Any]:
    """The Ray cluster of this process: four logical CPUs on whatever the machine has; its workers reach the store."""
    import ray

    from evilm.cluster import NO_DASHBOARD

    with pytest.MonkeyPatch.context() as patch:
        use_store(patch, s3_server)
        patch.setenv("RAY_API_SERVER_ADDRESS", NO_DASHBOARD)
        for attempts_left in (2, 1, 0):
            try:
                ray.init(
                    address="local",
                    num_cpus=4,
                    object_store_memory=256 * 2**20,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                )
                break
            except Exception:  # Ray gives its node 30 s to start, which may not be enough on a busy machine
                ray.shutdown()
                if not attempts_left:
                    raise
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3-protocol server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A fresh bucket as `s3://name`, reached through the standard AWS variables."""
    import hashlib

    import s3fs

    use_store(monkeypatch, s3_server)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"


def use_store(patch: pytest.MonkeyPatch, url: str) -> None:
    """Point the standard AWS variables at an S3 server."""
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def store_gate(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate before the store of `s3_bucket`, for processes that are started; `ray_local` goes around it."""
    gate = Gate()
    with FaultyS3(s3_server, gate) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield gate
        gate.open()


@pytest.fixture
def s3_through(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Through:
    """Put a faulty server between this test, its processes and the session's store; gives the bucket."""
    import s3fs

    def use(faulty: FaultyS3) -> str:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.url)
        s3fs.S3FileSystem.clear_instance_cache()
        return s3_bucket

    return use


@pytest.fixture(params=["local", "s3"])
def out_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output folder that does not exist yet, on the local disk and on S3."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3_bucket") + "/out"


@pytest.fixture
def machine_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine that has read nothing yet, below a temporary folder of this test's own."""
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp" / f"evilm-cache-{os.getuid()}"


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """A Ray cluster of a head and two worker nodes, or as many as the test's parameter says; see `ray_nodes`."""
    from helpers.ray_nodes import ray_nodes

    with ray_nodes(getattr(request, "param", 2)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def small_workflow(ray_local: Any, common_folder: Path) -> tuple[Path, dict[str, Any]]:
    """A finished small workflow: its root, and the summary of its pre-training. Read it, don't write into it."""
    from evilm.config.presets import defaults
    from evilm.tasks.pretrain import pretrain
    from helpers.paths import SMALL
    from helpers.sharing import build_once

    root = common_folder / "workflow"
    config = defaults("pretrain", str(SMALL)).model_copy(update={"root": str(root)})
    return root, build_once(root, lambda: pretrain(config))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tuned_questions(small_workflow: Any, common_folder: Path) -> tuple[Path, dict[str, Any]]:
    """A root with a model fine-tuned on questions, and its summary. Other outputs may be added to it."""
    from evilm.tasks.finetune import finetune
    from helpers.sharing import build_once
    from helpers.workflow import copy_workflow, small_finetune

    root = common_folder / "tuned"

    def build() -> dict[str, Any]:
        if not root.exists():
            copy_workflow(small_workflow[0], root)
        return finetune(small_finetune(root))

    return root, build_once(root, build)
