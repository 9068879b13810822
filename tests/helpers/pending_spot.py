"""A fake cloud in which spot nodes are asked for and never come, as pods that stay pending do."""

from typing import Any

from fake_nodes import FakeNodes
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)


class PendingSpotProvider(FakeNodes):
    """Starts nodes of every type but `gpu-spot`, of which it only says that they are on their way."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        if tags[TAG_RAY_USER_NODE_TYPE] != "gpu-spot":
            super()._create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
            return
        with self.lock:
            node_id = self._next_hex_node_id()
            own = {
                TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                TAG_RAY_NODE_NAME: node_id,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
            self._nodes[node_id] = {"tags": {**own, **tags}, "node": None}

    def _terminate_node(self, node: dict[str, Any]) -> None:
        if node["node"] is not None:
            super()._terminate_node(node)
