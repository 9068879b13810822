"""A node provider for `ray up` on AWS that starts spot nodes, or on-demand nodes without spot capacity.

Ray 2.60 keeps requesting a node type without capacity even if another type would do. So the provider makes the choice:
there is one node type, which it starts as spot if there is spot capacity, else on-demand.

    provider: {type: external, module: evilm.cloud.SpotFirst, region: us-west-2, ...}
"""

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

_SCARCE = {
    "InsufficientInstanceCapacity",
    "InsufficientCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
}
"""EC2 errors after which an on-demand node of the same type may still start."""
_MARKET = "InstanceMarketOptions"


class SpotFirst(AWSNodeProvider):
    """Ray's provider for AWS with on-demand as fallback, after spot was tried in all zones."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start `count` nodes and return them by id; raise Ray's own error if on-demand fails too."""
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if error.category not in _SCARCE or _MARKET not in node_config:
                raise
            logger.warning(
                "no spot capacity for %s (%s); starting on-demand",
                node_config.get("InstanceType"),
                error.category,
            )
        on_demand = {name: value for name, value in node_config.items() if name != _MARKET}
        return super().create_node(on_demand, tags, count)
