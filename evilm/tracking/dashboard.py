"""Show the MLflow store of a root in the browser, on this machine only.

python -m evilm.tracking.dashboard --root runs/demo
"""

import argparse
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from evilm.tracking.experiment import PORT, runs_page
from evilm.tracking.local_store import DATABASE, relocate
from evilm.tracking.run_file import SQLITE


def server_command(uri: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Return arguments and environment of an MLflow server for a store, with one process so that it starts fast."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"  # it starts uvicorn
    return [*command, "--backend-store-uri", uri, "--workers", "1"], environment


def experiments_of(database: Path) -> list[tuple[str, str]]:
    """Return id and name of the experiments of a store, without MLflow's empty one."""
    query = "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'active' AND experiment_id != 0"
    with closing(sqlite3.connect(database)) as connection:
        return [(str(number), name) for number, name in connection.execute(query)]


def main() -> None:
    """Print the addresses of the tables of runs, and become MLflow's server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/demo", help="root of a workflow with its own store")
    parser.add_argument("--port", default=PORT, type=int)
    given = parser.parse_args()
    database = Path(given.root).absolute() / DATABASE
    if not database.exists():
        sys.exit(
            f"error: {given.root}/{DATABASE} is not there; run make demo first, or name a root that has runs: "
            "make dashboard ROOT=runs/my"
        )
    relocate(f"{SQLITE}{database}")
    for number, name in experiments_of(database):
        print(f"Runs of {name}: {runs_page(f'http://127.0.0.1:{given.port}', number)}", flush=True)
    command, environment = server_command(f"{SQLITE}{database}", given.port)
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
