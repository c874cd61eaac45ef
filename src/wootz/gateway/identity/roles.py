"""Roles: what a key, or a person who signed in, may do. A role is a set of permissions, and nothing is allowed besides.

Every admin route and every page of the console names the one permission that it needs. The table is the whole policy:
a person's groups give them roles (``[identity.groups]``), a key has its own. Which models, requests and bodies a
permission reaches is then a matter of attributes (`attributes`).

Source: ANSI INCITS 359, role-based access control (core).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, get_args

Permission = Literal[
    "inference",  # ask models
    "requests",  # see the requests of one's team, not only one's own
    "all_teams",  # see those of every team
    "costs",  # see what everybody spends, and how much of each limit is used
    "bodies",  # read what was asked and answered; each reading is written to the audit log
    "operate",  # adapters, caches, engines, routes, runs
    "audit",  # read and verify the audit log
    "people",  # see users and groups, end sessions
    "provision",  # SCIM
    "accounts",  # keys, teams, users, tags, limits, erasure
]
Role = Literal["inference", "viewer", "developer", "billing", "operator", "auditor", "provisioner", "admin"]
ROLE_NAMES: tuple[Role, ...] = get_args(Role)

ROLES: Mapping[str, frozenset[Permission]] = {
    "inference": frozenset({"inference"}),
    "viewer": frozenset({"requests"}),
    "developer": frozenset({"inference", "requests"}),
    "billing": frozenset({"costs"}),
    "operator": frozenset({"inference", "requests", "all_teams", "costs", "operate"}),
    "auditor": frozenset({"requests", "all_teams", "costs", "bodies", "audit", "people"}),
    "provisioner": frozenset({"provision"}),
    "admin": frozenset(get_args(Permission)),
}


def permissions(roles: Collection[str]) -> frozenset[Permission]:
    """Of all these roles together. One that is not known gives nothing."""
    return frozenset().union(*(ROLES.get(role, frozenset()) for role in roles))


def roles_of_groups(groups: Collection[str], mapping: Mapping[str, Collection[str]]) -> list[str]:
    """In the table's order. Groups without a mapping give nothing."""
    given = {role for group in groups for role in mapping.get(group, ())}
    return [role for role in ROLE_NAMES if role in given]
