"""A job on a cluster of several nodes: one that fails is avoided, one that joins is used."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import wait_for

pytestmark = pytest.mark.long


def units(nodes: dict[str, Any], code: str) -> subprocess.Popen[bytes]:
    """Run units of work on these nodes, from a process of its own."""
    start = (
        "import json, ray; from helpers import failing_units; from functools import partial; "
        "from evilm.jobs import runner; "
        "from evilm.config.resources import PoolConfig; "
        "from evilm.cluster import actor_options, connect, task_options; "
        "from evilm.console import log_to_console; "
        "log_to_console(); connect(min_cpus=1); names = [f's-{n}' for n in range(8)]; "
    )
    environment = os.environ | {"RAY_ADDRESS": nodes["address"]}
    command = [sys.executable, "-c", start + code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_shards_failing_on_one_node_are_made_on_another(nodes: dict[str, Any]) -> None:
    process = units(
        nodes,
        "bad = next(node['NodeID'] for node in ray.nodes() if node['Resources'].get('CPU')); "
        "options, needed = task_options(PoolConfig(num_workers='auto'), 8); "
        "rows = list(runner.run(names, partial(failing_units.fail_on, bad), needed, options, 'frames')); "
        "print(json.dumps([sorted(row['name'] for row in rows), bad, sorted({row['node'] for row in rows})]))",
    )
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-3000:]
    names, bad, made_on = json.loads(printed.decode().splitlines()[-1])
    assert names == [f"s-{number}" for number in range(8)]
    assert made_on
    assert bad not in made_on
    assert "failed: no space left on device" in said.decode()
    assert "on other nodes" in said.decode()


def test_node_that_fails_at_once_does_not_end_the_job(nodes: dict[str, Any], tmp_path: Path) -> None:
    """Its failures come in before the first shard of the other node."""
    process = units(
        nodes,
        "names = [f's-{n}' for n in range(20)]; "
        "bad = next(node['NodeID'] for node in ray.nodes() if node['Resources'].get('CPU')); "
        "options, needed = task_options(PoolConfig(num_workers='auto'), 20); "
        f"worker = partial(failing_units.fail_at_once_on, bad, {str(tmp_path)!r}); "
        "rows = list(runner.run(names, worker, needed, options, 'frames')); "
        "print(json.dumps([sorted(row['name'] for row in rows), bad, sorted({row['node'] for row in rows})]))",
    )
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-3000:]
    names, bad, made_on = json.loads(printed.decode().splitlines()[-1])
    assert names == sorted(f"s-{number}" for number in range(20))
    assert bad not in made_on
    assert "frames: 8 shards failed; making 20 on other nodes" in said.decode()


@pytest.mark.parametrize("nodes", [1], indirect=True)
@pytest.mark.parametrize(
    "made",
    ["task_options(pool, 8), partial(failing_units.meet, {!r})", "actor_options(pool, 8), failing_units.Meeting"],
)
def test_worker_pool_grows_with_the_cluster(nodes: dict[str, Any], made: str, tmp_path: Path) -> None:
    is_actor = "actor" in made
    process = units(
        nodes,
        f"pool = PoolConfig(num_workers='auto'); (options, needed), worker = {made.format(str(tmp_path))}; "
        + (f"options |= dict(fn_constructor_args=({str(tmp_path)!r},)); " if is_actor else "")
        + "print(len(list(runner.run(names, worker, needed, options, 'frames'))))",
    )
    wait_for(lambda: len(list(tmp_path.iterdir())) == 1, process)
    nodes["add"]()
    printed, said = process.communicate(timeout=400)
    assert process.returncode == 0, said.decode()[-3000:]
    assert printed.decode().split()[-1] == "8"
