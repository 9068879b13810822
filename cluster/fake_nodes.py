"""Ray's provider of fake nodes, each with a disk of its own: the autoscaler of `local.py` imports it.

Ray's own lets all nodes share the head's folder, and a node that joins empties the part of it where the working dirs of
running jobs lie. Machines do not do that to each other.
"""

import os
from pathlib import Path
from typing import Any

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeNodes(FakeMultiNodeProvider):
    """Starts every node in a folder below $EVILM_FAKE_NODES."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        folder = Path(os.environ["EVILM_FAKE_NODES"]) / f"n{self._next_node_id + 1}"
        folder.mkdir(parents=True)
        module: Any = parameter
        make = module.RayParams

        def with_folder(**settings: Any) -> Any:
            return make(**settings | {"temp_dir": str(folder)})

        with self.lock:  # one node at a time: the base class knows no setting for this
            module.RayParams = with_folder
            try:
                super()._create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
            finally:
                module.RayParams = make
