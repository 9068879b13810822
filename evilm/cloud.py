"""Spot nodes first, on-demand nodes where spot has run out: a node provider for `ray up` on AWS.

Ray 2.60 asks again and again for a node type that the cloud refuses, whatever other type would do as well. So the
choice is made below it, by the provider: one node type, started as spot if there is spot capacity, else on-demand.

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
"""What EC2 answers where an on-demand node of the same type may still be had."""
_MARKET = "InstanceMarketOptions"


class SpotFirst(AWSNodeProvider):
    """Ray's provider for AWS, whose spot types fall back to on-demand. All zones are tried for spot before."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start `count` nodes; returns them by id, or raises what Ray expects where none can be had at all."""
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if error.category not in _SCARCE or _MARKET not in node_config:
                raise
            logger.warning(
                "no spot node of type %s is to be had (%s); starting on-demand",
                node_config.get("InstanceType"),
                error.category,
            )
        on_demand = {name: value for name, value in node_config.items() if name != _MARKET}
        return super().create_node(on_demand, tags, count)
