"""Ray's provider of fake nodes, extended by a separate folder per node; the autoscaler of `local.py` imports it.

In Ray's version all nodes share the head's folder, and a joining node deletes the working dirs of running jobs in it,
which separate machines would not do.
"""

import os
from pathlib import Path
from typing import Any

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeNodes(FakeMultiNodeProvider):
    """A provider that starts every node in its own folder below $EVILM_FAKE_NODES."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        folder = Path(os.environ["EVILM_FAKE_NODES"]) / f"n{self._next_node_id + 1}"
        folder.mkdir(parents=True)
        others = {name: value for name, value in resources.items() if name != "memory"}
        module: Any = parameter
        make = module.RayParams

        def with_folder(**settings: Any) -> Any:
            return make(**settings | {"temp_dir": str(folder), "memory": resources.get("memory")})

        with self.lock:  # one node at a time: the base class has no setting for this
            module.RayParams = with_folder
            try:
                super()._create_node_with_resources_and_labels(node_config, tags, count, others, labels)
            finally:
                module.RayParams = make
