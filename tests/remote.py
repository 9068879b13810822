"""Pre-training whose output is on an object store, told to end in the middle, and gone on with; a process of its own.

    python tests/remote.py ROOT SUMMARY_JSON OUT FOLDER

The workers reach the store by the AWS variables, which they inherit.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "FAULTS_FILE": f"{sys.argv[4]}/faults.json",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
}
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

from faults import train  # noqa: E402

from evilm import storage  # noqa: E402
from evilm.train.keeper import CHECKPOINTS, newest_first  # noqa: E402
from evilm.train.stop import Stopped  # noqa: E402


def main(root: str, summary: str, out: str) -> None:
    """Stop after 8 steps; spoil the newest checkpoint; finish."""
    workflow = Path(root), json.loads(Path(summary).read_text())
    try:
        train(workflow, out, (0, 7, "terminate driver"))
    except Stopped as stopped:
        print(json.dumps({"exit_code": stopped.exit_code, "checkpoints": newest_first(out)}))
    newest = storage.join(out, CHECKPOINTS, newest_first(out)[0], "weights.safetensors")
    storage.write_bytes(newest, storage.read_bytes(newest)[:-1])
    train(workflow, out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
