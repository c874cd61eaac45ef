"""Control tokens, and text that must not become one.

A control token (``<|im_end|>``) is one id that stands outside of text. Written out *in* a text it is an attack or an
accident: a user who sends ``<|im_end|>`` must not end their turn. The library matches added tokens wherever they are
written, so `LiteralEncoder` uses a twin of the tokenizer in which every control token has another, secret name. What
is spelled in the ordinary way is text to the twin; what the chat template wrote is renamed before it is encoded. All
else about the twin (model, flags, normalizer, prefix space) is the same, so ids differ from the tokenizer's only there.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken

from wootz.core.errors import BadRequestError, ModelFileError


def control_ids(backend: tokenizers.Tokenizer, template: str | None) -> frozenset[int]:
    """Ids that no user's text may yield: the special tokens, and the added tokens that the chat template writes
    (Qwen's ``<tool_call>`` and ``<think>`` are not marked as special). Not the token for unknown characters."""
    unknown = {getattr(backend.model, "unk_token", None), "<unk>", "[UNK]"}
    return frozenset(
        id
        for id, token in backend.get_added_tokens_decoder().items()
        if token.content not in unknown and (token.special or _is_markup(token.content, template or ""))
    )


def _is_markup(text: str, template: str) -> bool:
    return bool(text.strip()) and text in template


def token_pattern(texts: list[str]) -> re.Pattern[str]:
    """Matches the texts as the library does: the leftmost first, and there the longest."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


class ControlSyntax:
    """How control tokens are written, as patterns."""

    def __init__(self, special: list[str], markup: list[str]) -> None:
        self.texts = (*special, *markup)
        self.token = token_pattern([*self.texts])
        begins = "|".join(sorted({_beginning(text) for text in self.texts})) or r"(?!)"
        self.beginning = re.compile(begins)
        """A character with which a control token might begin."""
        self.beginning_outside_markup = re.compile(f"(?!{token_pattern(markup).pattern})(?:{begins})")
        """The same, except where markup stands that is not special (``<think>``)."""


def _beginning(token: str) -> str:
    """The first character is enough, wherever the rest may come from (another part of a message, for one), unless it
    is a letter."""
    return re.escape(token[0]) if not token[0].isalnum() else f"{re.escape(token[0])}(?={re.escape(token[1:])})"


class LiteralEncoder:
    """Encodes text in which a control token is one only where `mark` renamed it."""

    def __init__(self, backend: tokenizers.Tokenizer, control: frozenset[int]) -> None:
        nonce = secrets.token_hex(8)  # unknown to whoever writes the texts
        added = backend.get_added_tokens_decoder()
        self._secret_of = {added[id].content: f"<{nonce}.{id}>" for id in sorted(control)}
        self._pattern = token_pattern([token.content for token in added.values()])
        self._twin, self._id_of = _twin(backend, self._secret_of)
        if any(control.intersection(self.encoding(text)[0]) for text in self._secret_of):
            # The model itself knows the token by its text (Unigram does); so it needs the new names, too.
            self._twin, self._id_of = rename_tokens(backend, self._secret_of), {}

    @property
    def names(self) -> tuple[str, ...]:
        """The secret names."""
        return tuple(self._secret_of.values())

    def mark(self, text: str) -> str:
        """``text`` with its control tokens renamed, so that `encoding` yields them."""
        return self._pattern.sub(lambda match: self._secret_of.get(match[0], match[0]), text)

    def encoding(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and offsets into ``text``."""
        encoding = self._twin.encode(text, add_special_tokens=False)
        return [self._id_of.get(id, id) for id in encoding.ids], encoding.offsets


def _twin(backend: tokenizers.Tokenizer, names: Mapping[str, str]) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
    """A tokenizer that shares the model with ``backend`` and has its added tokens under new names; and the ids that
    these have there, with the true ones."""
    twin = tokenizers.Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer"):
        if getattr(backend, part) is not None:
            setattr(twin, part, getattr(backend, part))
    true_ids = {}
    for id, token in sorted(backend.get_added_tokens_decoder().items()):
        true_ids[names.get(token.content, token.content)] = id
        flags = {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        twin.add_tokens([AddedToken(names.get(token.content, token.content), **flags)])
    theirs = {token.content: id for id, token in twin.get_added_tokens_decoder().items()}
    return twin, {theirs[text]: id for text, id in true_ids.items()}


def rename_tokens(backend: tokenizers.Tokenizer, names: Mapping[str, str]) -> tokenizers.Tokenizer:
    """A copy in which each token of ``names`` has the new name and the same id: how a reserved token
    (``<|reserved_special_token_3|>``) gets its purpose later, with no row of the embedding added or moved.

    Raises `BadRequestError` for a token that does not exist or a name that is taken.
    """
    ids = {old: backend.token_to_id(old) for old in names}
    for old, new in names.items():
        if ids[old] is None:
            raise BadRequestError(f'there is no token "{old}" to rename')
        if backend.token_to_id(new) is not None and new != old:
            raise BadRequestError(f'the name "{new}" is taken by token {backend.token_to_id(new)}')
    if len(set(names.values())) < len(names):
        raise BadRequestError("two tokens would get the same name")

    state: dict[str, Any] = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if "merges" in model:  # no text may be merged into a token that has another name now
        model["merges"] = [
            merge
            for merge in model["merges"]
            if not names.keys() & {*(pair := merge.split(" ") if isinstance(merge, str) else merge), "".join(pair)}
        ]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): id for text, id in model["vocab"].items()}
    else:  # Unigram: [piece, score] in id order
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    _rename_in_post_processor(state.get("post_processor"), names)
    copy = tokenizers.Tokenizer.from_str(json.dumps(state))
    moved = [new for old, new in names.items() if copy.token_to_id(new) != ids[old]]
    if moved:
        raise ModelFileError(f"the tokenizer can't rename tokens: {moved[0]} would get another id")
    return copy


def _rename_in_post_processor(step: dict[str, Any] | None, names: Mapping[str, str]) -> None:
    """``TemplateProcessing`` names the tokens it adds; the others hold none, or hold them with their ids."""
    if step is None:
        return
    for inner in step.get("processors", []):
        _rename_in_post_processor(inner, names)
    if step["type"] == "TemplateProcessing":
        for piece in step["single"] + step["pair"]:
            if "SpecialToken" in piece:
                piece["SpecialToken"]["id"] = names.get(piece["SpecialToken"]["id"], piece["SpecialToken"]["id"])
        step["special_tokens"] = {
            names.get(name, name): {
                "id": names.get(name, name),
                "ids": token["ids"],
                "tokens": [names.get(text, text) for text in token["tokens"]],
            }
            for name, token in step["special_tokens"].items()
        }
    elif step["type"] in ("BertProcessing", "RobertaProcessing"):
        for role in ("sep", "cls"):
            step[role][0] = names.get(step[role][0], step[role][0])
