"""Random JSON Schemas of what the engine enforces, by seed."""

from __future__ import annotations

import random
from typing import Any

NAMES = ["name", "age", "tags", "a b", "é", "x-1", "quote\"d", "ok"]  # fmt: skip


def random_schema(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    schema = _object(rng, 2) if rng.random() < 0.6 else _any(rng, 2)
    if rng.random() < 0.15:  # a list that is made of itself
        node = {
            "type": "object",
            "properties": {"v": _any(rng, 0), "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
        }
        schema = {"$defs": {"node": node | {"additionalProperties": False}}, "$ref": "#/$defs/node"}
    return schema


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _enum, _flag]
    if depth:
        kinds += [_object, _array, _union]
    return rng.choice(kinds)(rng, depth)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: _any(rng, max(0, depth - 1)) for name in names}}
    schema["required"] = [name for name in names if rng.random() < 0.6]
    schema["additionalProperties"] = rng.choice([False, False, False, {"type": "integer", "minimum": 0, "maximum": 9}])
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _any(rng, depth - 1), "maxItems": rng.randint(1, 3)}
    if rng.random() < 0.4:
        schema["minItems"] = rng.randint(0, schema["maxItems"])
    if rng.random() < 0.2:
        schema |= {"prefixItems": [_any(rng, 0)], "items": False, "minItems": 1, "maxItems": 1}
    return schema


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(2, 3))]}


def _string(rng: random.Random, _: int) -> dict[str, Any]:
    kind = rng.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": rng.choice(["^[a-c]{2,4}$", r"^\d+-\d$", "^(ab|cd)*$", r"^\S{1,5}$"])}
    if kind == 1:
        return {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4", "date-time"])}
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)}


def _integer(rng: random.Random, _: int) -> dict[str, Any]:
    low = rng.randint(-200, 200)
    schema = {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 3000)}
    return {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700} if rng.random() < 0.2 else schema


def _number(rng: random.Random, _: int) -> dict[str, Any]:
    low = round(rng.uniform(-5, 5), 2)
    return {"type": "number", rng.choice(["minimum", "exclusiveMinimum"]): low, "exclusiveMaximum": low + 2}


def _enum(rng: random.Random, _: int) -> dict[str, Any]:
    values = rng.sample(["red", "green", "", "a\"b\\", 3, 4.5, None, True, "ä😀"], rng.randint(1, 4))  # fmt: skip
    return {"const": values[0]} if rng.random() < 0.2 else {"enum": values}


def _flag(rng: random.Random, _: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}
