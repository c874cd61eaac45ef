"""The secrets in Terraform's state and plans, which keep every value in the clear, also those marked sensitive.

Formats: state version 4, and what ``terraform show -json`` prints
(https://developer.hashicorp.com/terraform/internals/json-format). Sensitive is what the file says so: an output or
variable with ``sensitive``, a place in ``sensitive_attributes``, ``sensitive_values`` or ``after_sensitive``; besides,
any text under a name that says secret. The values then are searched for everywhere, so that an output made of one
(a URL with the key in it) is found though nobody marked it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from wootz.store.secrets.scan.shapes import SECRET_NAME

MASKS = {"values": "sensitive_values", "after": "after_sensitive", "before": "before_sensitive"}
_SECRET_NAME = re.compile(rf".*{SECRET_NAME}", re.IGNORECASE)
_ABOUT_IT = re.compile(
    r".*(?:name|_id|arn|version|type|path|ttl|length|url|expiry|enabled|policy|spec|usage)$", re.IGNORECASE
)
_NO_VALUE = re.compile(r"(?:env|file|store|vault|aws|transit|arn|acs):|.*\s|\$\{|(?:true|false|null)$", re.IGNORECASE)


def secrets_in(text: str) -> dict[str, str]:
    """Value by the path it has in the file; empty for what is no state or plan."""
    if '"terraform_version"' not in text and '"planned_values"' not in text:
        return {}
    try:
        tree = json.loads(text)
    except ValueError:
        return {}
    found = {path: value for path, value in _walk(tree, "", _sensitive_variables(tree)) if len(value) >= 8}
    return {path: value for path, value in found.items() if not _NO_VALUE.match(value)}


def _walk(tree: Any, path: str, variables: set[str]) -> Iterator[tuple[str, str]]:
    if isinstance(tree, list):
        for number, part in enumerate(tree):
            yield from _walk(part, f"{path}[{number}]", variables)
    if not isinstance(tree, dict):
        return
    if tree.get("sensitive") is True:
        yield from _leaves(tree.get("value"), f"{path}.value")
    for values, mask in MASKS.items():
        if values in tree and mask in tree:
            yield from _masked(tree[values], tree[mask], f"{path}.{values}")
    for steps in tree.get("sensitive_attributes") or ():
        yield from _leaves(_follow(tree.get("attributes"), steps), f"{path}.attributes")
    for name, part in tree.items():
        here = f"{path}.{name}".lstrip(".")
        if isinstance(part, str) and _SECRET_NAME.match(name) and not _ABOUT_IT.match(name):
            yield here, part
        if isinstance(part, dict) and (path.endswith("variables") and name in variables):
            yield from _leaves(part.get("value"), f"{here}.value")
        yield from _walk(part, here, variables)


def _sensitive_variables(tree: Any) -> set[str]:
    declared = _follow(tree, ["configuration", "root_module", "variables"])
    if not isinstance(declared, dict):
        return set()
    return {name for name, one in declared.items() if isinstance(one, dict) and one.get("sensitive") is True}


def _masked(values: Any, mask: Any, path: str) -> Iterator[tuple[str, str]]:
    if mask is True:
        yield from _leaves(values, path)
    elif isinstance(values, dict) and isinstance(mask, dict):
        for name in values.keys() & mask.keys():
            yield from _masked(values[name], mask[name], f"{path}.{name}")
    elif isinstance(values, list) and isinstance(mask, list):
        for number, (value, part) in enumerate(zip(values, mask, strict=False)):
            yield from _masked(value, part, f"{path}[{number}]")


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield path.lstrip("."), tree
    elif isinstance(tree, dict | list):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(part, f"{path}.{name}")


def _follow(tree: Any, steps: Any) -> Any:
    """``steps`` are names, or Terraform's ``{"type": "get_attr", "value": "password"}``."""
    for step in steps if isinstance(steps, list) else [steps]:
        key = step.get("value") if isinstance(step, dict) else step
        key = key.get("value") if isinstance(key, dict) else key
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree
