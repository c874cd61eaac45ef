"""Shortening to a number of tokens without breaking what they mean.

A plain text is shortened by tokens (`truncate_ids`), a conversation by whole turns and then inside messages
(`truncate_chat`): control tokens, role names and the generation prompt of the template must all stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from wootz.core.errors import BadRequestError

if TYPE_CHECKING:
    from wootz.tokenization.tokenizer import Tokenizer

Side = Literal["left", "right", "middle"]
"""What is given up: the beginning, the end, or what lies between."""


def truncate_ids(tokenizer: Tokenizer, ids: Sequence[int], max_tokens: int, *, side: Side = "right") -> list[int]:
    """At most ``max_tokens`` of ``ids``, in order. Special tokens at both ends (BOS, EOS) stay; at a cut, so many more
    tokens go that no character is left in part. (A character that was broken before is not mended.)

    Raises `BadRequestError` if the special tokens alone are more than ``max_tokens``.
    """
    ids = list(ids)
    if len(ids) <= max_tokens:
        return ids
    start, end = 0, len(ids)
    while start < end and ids[start] in tokenizer.special_ids:
        start += 1
    while end > start and ids[end - 1] in tokenizer.special_ids:
        end -= 1
    room = max_tokens - (len(ids) - (end - start))
    if room < 0:
        raise BadRequestError(f"{len(ids) - (end - start)} special tokens do not fit in {max_tokens}")
    starts_character = _character_starts(tokenizer, ids)
    head = {"left": 0, "right": room, "middle": (room + 1) // 2}[side]
    keep_until, keep_from = start + head, end - (room - head)
    while keep_until > start and not starts_character[keep_until]:
        keep_until -= 1
    while keep_from < end and not starts_character[keep_from]:
        keep_from += 1
    return ids[:keep_until] + ids[keep_from:]


def _character_starts(tokenizer: Tokenizer, ids: list[int]) -> list[bool]:
    """Whether a cut before each token (and after the last) falls between characters: whether the next byte is none
    that continues one. Tokens without bytes are between nothing, so the token after them decides."""
    starts = [True]
    for id in reversed(ids):
        data = tokenizer.token_bytes(id)
        starts.append(not 0x80 <= data[0] < 0xC0 if data else starts[-1])
    return starts[::-1]


def truncate_text(tokenizer: Tokenizer, text: str, max_tokens: int, *, side: Side = "right") -> str:
    """A part of ``text`` that encodes to at most ``max_tokens`` tokens, special tokens not counted."""
    ids = tokenizer.encode(text, add_special_tokens=False, control="text")
    room = max_tokens
    while len(ids) > max_tokens:  # what is cut apart may encode to more, so look again
        ids = truncate_ids(tokenizer, ids, max(room, 0), side=side)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        ids = tokenizer.encode(text, add_special_tokens=False, control="text")
        room -= 1
    return text


def truncate_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    max_tokens: int,
    *,
    side: Side = "left",
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> list[dict[str, Any]]:
    """Messages whose prompt has at most ``max_tokens`` tokens, every one of them with its whole frame.

    First the oldest exchanges go, up to the next user's turn each time, so that roles still alternate and no tool's
    result loses its call; a system message at the front and the last user's turn with what follows stay. If that is
    not enough, the longest contents are shortened on ``side``. Raises `BadRequestError` when the frame does not fit.
    """
    kept = [dict(message) for message in messages]

    def num_tokens() -> int:
        return len(tokenizer.encode_chat(kept, tools=tools, add_generation_prompt=add_generation_prompt))

    first = 1 if kept and kept[0].get("role") == "system" else 0
    while (excess := num_tokens() - max_tokens) > 0:
        users = [index for index in range(first + 1, len(kept)) if kept[index].get("role") == "user"]
        if users:
            del kept[first : users[0]]
            continue
        lengths = {
            index: len(tokenizer.encode(message["content"], add_special_tokens=False, control="text"))
            for index, message in enumerate(kept)
            if isinstance(message.get("content"), str) and message["content"]
        }
        if not lengths:
            raise BadRequestError(f"without any content the prompt is still {excess} tokens longer than {max_tokens}")
        longest = max(lengths, key=lambda index: lengths[index])
        room = max(lengths[longest] - excess, 0)
        kept[longest]["content"] = truncate_text(tokenizer, kept[longest]["content"], room, side=side)
    return kept
