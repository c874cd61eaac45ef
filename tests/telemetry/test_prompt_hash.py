"""Prompts as keyed hashes: the same is seen as such, and guesses can't be tried out."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from wootz.core import Config
from wootz.core.wire import ChatRequest, CompletionRequest
from wootz.telemetry.prompt_hash import KEY_FILE, PromptHasher


def chat(*texts: str, **more) -> ChatRequest:
    messages = [{"role": "user", "content": text} for text in texts]
    return ChatRequest.model_validate({"model": "m", "messages": messages, **more})


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_hashes_are_equal_where_texts_are(one: list[str], other: list[str]) -> None:
    hasher = PromptHasher(b"key")
    assert (hasher(chat(*one)) == hasher(chat(*other))) == (one == other)
    assert hasher(chat(*one, temperature=0.5)) == hasher(chat(*one))


@given(st.lists(st.text(min_size=1), min_size=1, max_size=2), st.text(), st.text())
def test_a_template_is_known_by_the_instructions_whatever_follows(given: list[str], one: str, other: str) -> None:
    hasher = PromptHasher(b"key")

    def asked(text: str, *instructions: str, role: str = "system") -> ChatRequest:
        messages = [*({"role": role, "content": part} for part in instructions), {"role": "user", "content": text}]
        return ChatRequest.model_validate({"model": "m", "messages": messages})

    template = hasher(asked(one, *given)).template
    assert template is not None
    assert template == hasher(asked(other, *given)).template != hasher(asked(one, *given)).prompt
    assert template != hasher(asked(one, *given, "and be brief")).template
    assert template != hasher(asked(one, *given, role="developer")).template
    assert hasher(asked(one)).template is None


def test_a_guess_says_nothing_without_the_key() -> None:
    shown, num_chars, _ = PromptHasher(b"key")(chat("yes"))
    assert num_chars == len("yes")
    guesses = [text.encode() for text in ("yes", "useryes")]
    assert shown not in [hashlib.sha256(guess).hexdigest()[: len(shown)] for guess in guesses]
    assert PromptHasher(b"another")(chat("yes"))[0] != shown


def test_processes_that_start_together_make_one_key(tmp_path: Path) -> None:
    async def start() -> list[PromptHasher]:
        made = (asyncio.to_thread(PromptHasher.of, Config(home=tmp_path)) for _ in range(8))
        return await asyncio.gather(*made)

    asked = CompletionRequest.model_validate({"model": "m", "prompt": "hello"})
    assert len({hasher(asked) for hasher in asyncio.run(start())}) == 1
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE]
