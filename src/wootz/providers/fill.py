"""Filling in a fixed structure: only the values are generated, the brackets and keys are ours (jsonformer's way).

It needs nothing of a model but that it continues text and heeds stop strings, so it works where no grammar does: any
object, array of fixed length, string, number, truth value or choice. Each value is a request of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from wootz.core import BadRequestError, LanguageModel, collect_completion
from wootz.core.wire import CompletionRequest

MAX_STRING_TOKENS, MAX_NUMBER_TOKENS = 64, 12
NUM_ITEMS = 3
"""Of an array that says nothing of its length."""


async def fill(model: LanguageModel, prompt: str, schema: Mapping[str, Any], **sampling: Any) -> Any:
    """The value that the model fills in. Raises `BadRequestError` for a schema with other parts than these."""
    return await _Filler(model, prompt, sampling).value(schema, "")


class _Filler:
    def __init__(self, model: LanguageModel, prompt: str, sampling: dict[str, Any]) -> None:
        self.model, self.prompt, self.sampling = model, prompt, sampling

    async def value(self, schema: Mapping[str, Any], written: str) -> Any:
        """The value that goes after what is ``written`` so far."""
        if "const" in schema or "enum" in schema:
            return await self._choice(schema.get("enum") or [schema["const"]], written)
        match schema.get("type"):
            case "object":
                filled: dict[str, Any] = {}
                for key, part in (schema.get("properties") or {}).items():
                    so_far = json.dumps(filled, ensure_ascii=False)[:-1] + (", " if filled else "")
                    filled[key] = await self.value(part, f"{written}{so_far}{json.dumps(key)}: ")
                return filled
            case "array":
                items: list[Any] = []
                for _ in range(schema.get("minItems", min(NUM_ITEMS, schema.get("maxItems", NUM_ITEMS)))):
                    so_far = json.dumps(items, ensure_ascii=False)[:-1] + (", " if items else "")
                    items.append(await self.value(schema.get("items") or {"type": "string"}, written + so_far))
                return items
            case "string":
                text = await self._ask(f'{written}"', ['"', "\n"], MAX_STRING_TOKENS)
                return text[: schema.get("maxLength")]
            case "boolean":
                return await self._choice([True, False], written)
            case "null":
                return None
            case "integer" | "number" as kind:
                text = await self._ask(written, [",", "}", "]", "\n"], MAX_NUMBER_TOKENS)
                found = re.search(r"-?\d+" if kind == "integer" else r"-?\d+(\.\d+)?", text)
                return json.loads(str(int(found[0])) if kind == "integer" else str(float(found[0]))) if found else 0
        raise BadRequestError(f"this schema can't be filled in: {json.dumps(schema)[:80]}", code="unsupported_grammar")

    async def _choice(self, values: list[Any], written: str) -> Any:
        """The value that the model's own words begin like; the first, if it says none of them."""
        if len(values) == 1:
            return values[0]
        text = (await self._ask(written, ["\n"], MAX_NUMBER_TOKENS)).lstrip()
        spelled = {json.dumps(value, ensure_ascii=False): value for value in values}
        fitting = [one for one in spelled if text.startswith(one)]
        return spelled[max(fitting, key=len)] if fitting else values[0]

    async def _ask(self, written: str, stop: list[str], max_tokens: int) -> str:
        fields = {"model": self.model.name, "prompt": f"{self.prompt}{written}", "stop": stop, "max_tokens": max_tokens}
        request = CompletionRequest.model_validate(fields | self.sampling)
        return (await collect_completion(self.model.complete(request))).choices[0].text
