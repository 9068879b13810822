"""A node provider for `ray up` on AWS: spot nodes with on-demand as fallback, and no endless failed set-ups.

Ray 2.60 keeps requesting a node type without capacity even if another type would do. So the provider makes the choice:
there is one node type, which it starts as spot if there is spot capacity, else on-demand. Ray also replaces a node
whose set-up failed by a new one, for ever; the provider stops that after a few.

    provider: {type: external, module: evilm.cloud.SpotFirst, region: us-west-2, ...}
"""

import contextlib
import datetime
import logging
import threading
from collections.abc import Iterator
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import (
    STATUS_UPDATE_FAILED,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

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
_MAX_FAILED_SETUPS = 3


class SpotFirst(AWSNodeProvider):
    """Ray's provider for AWS with on-demand as fallback, after spot was tried in all zones."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        """Begin with no failed set-ups: `ray up` starts another provider, with commands that may be fixed."""
        super().__init__(provider_config, cluster_name)
        self._began = datetime.datetime.now(datetime.UTC).replace(microsecond=0)  # as EC2's times
        self._failed: dict[str, set[str]] = {}

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start `count` nodes and return them by id.

        Raises:
            NodeLaunchException: on-demand failed too, or the set-up of the latest nodes of this type failed.
        """
        self._check_setups(tags.get(TAG_RAY_USER_NODE_TYPE, ""))
        with self._refusals() as refusals:
            try:
                return super().create_node(node_config, tags, count)
            except NodeLaunchException as error:
                # Ray tries all zones and reports the last one's error; the lack of capacity may be another one's.
                scarce = _SCARCE & {error.category, *refusals}
                if not scarce or _MARKET not in node_config:
                    raise
        size = node_config.get("InstanceType")
        logger.warning("no spot capacity for %s (%s); starting on-demand", size, ", ".join(sorted(scarce)))
        on_demand = {name: value for name, value in node_config.items() if name != _MARKET}
        return super().create_node(on_demand, tags, count)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[list[str]]:
        """Collect the error codes with which EC2 refuses this thread's requests for nodes."""
        codes: list[str] = []
        thread = threading.get_ident()

        def collect(parsed: dict[str, Any], **_: Any) -> None:
            if threading.get_ident() == thread and "Error" in parsed:
                codes.append(parsed["Error"].get("Code", ""))

        requests: Any = self.ec2_fail_fast  # boto3 makes the classes of its resources when it runs
        events = requests.meta.client.meta.events
        events.register("after-call.ec2.RunInstances", collect)
        try:
            yield codes
        finally:
            events.unregister("after-call.ec2.RunInstances", collect)

    def _check_setups(self, node_type: str) -> None:
        """Reject a node type whose latest nodes were terminated after a failed set-up.

        EC2 lists them for an hour only, so their ids are kept for as long as this provider.
        """
        wanted = {
            f"tag:{TAG_RAY_CLUSTER_NAME}": self.cluster_name,
            f"tag:{TAG_RAY_USER_NODE_TYPE}": node_type,
            f"tag:{TAG_RAY_NODE_STATUS}": STATUS_UPDATE_FAILED,
        }
        filters = [{"Name": name, "Values": [value]} for name, value in wanted.items()]
        account: Any = self.ec2
        failed = self._failed.setdefault(node_type, set())
        failed |= {node.id for node in account.instances.filter(Filters=filters) if node.launch_time >= self._began}
        if len(failed) >= _MAX_FAILED_SETUPS:
            text = f"the set-up of {len(failed)} nodes of type {node_type} failed; fix it and run `ray up` again"
            raise NodeLaunchException("SetUpFailed", text, None)
