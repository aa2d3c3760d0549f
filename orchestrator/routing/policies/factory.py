"""Makes the policy that the settings name."""

from __future__ import annotations

from enum import StrEnum

from orchestrator.routing.policies.policy import RoutingPolicy
from orchestrator.routing.policies.prefix import Prefix
from orchestrator.routing.policies.simple import Affinity, LeastOutstanding, RoundRobin


class PolicyName(StrEnum):
    """The values of ORCHESTRATOR_ROUTING_POLICY."""

    PREFIX = "prefix"
    AFFINITY = "affinity"
    LEAST_OUTSTANDING = "least_outstanding"
    ROUND_ROBIN = "round_robin"


def make_policy(name: PolicyName, max_index_blocks: int) -> RoutingPolicy:
    """The policy, with an index of at most this many blocks if it has one."""
    match name:
        case PolicyName.PREFIX:
            return Prefix(max_index_blocks)
        case PolicyName.AFFINITY:
            return Affinity()
        case PolicyName.LEAST_OUTSTANDING:
            return LeastOutstanding()
        case PolicyName.ROUND_ROBIN:
            return RoundRobin()
