"""The built-in templates write what the families were trained on, and tell training which part is the model's."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from wootz.core import NotFoundError, UnsupportedError
from wootz.tokenization import ChatTemplate, Tokenizer
from wootz.tokenization.built_in_templates import BUILT_IN_TEMPLATES, built_in_template

from .test_chat_template import CHATML, LLAMA_3, TURNS

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIALS += ["[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
ROLES = {"bos_token": "<s>", "eos_token": "</s>"}

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": PARAMETERS}}]
TOOL_TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "dry", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Sure?"},
]


def backend() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("N", "o"), ("Ċ", "T"), (".", "Ċ"), ("r", "u"), ("ru", "e")]
    vocabulary = {text: id for id, text in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    result = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return result


def tokenizer(template: ChatTemplate | None) -> Tokenizer:
    return Tokenizer(backend(), bos_token_id=262, eos_token_ids=[263, 265], chat_template=template)


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend(), **ROLES)


@pytest.mark.parametrize(
    ("name", "turns"),
    [(name, turns) for name in BUILT_IN_TEMPLATES for turns in (TURNS, TURNS[1:3])]
    + [(name, TOOL_TURNS) for name in ("qwen", "llama3", "mistral")],
)
def test_ids_and_mask_equal_transformers(name: str, turns: list[dict[str, Any]], theirs: Any) -> None:
    template = built_in_template(name, special_tokens=ROLES)
    tools = TOOLS if turns is TOOL_TURNS else None
    options = {"chat_template": template.source, "tokenize": True, "return_dict": True, "tools": tools}
    asked = theirs.apply_chat_template(turns, add_generation_prompt=True, **options)
    assert tokenizer(template).encode_chat(turns, tools=tools) == asked["input_ids"]
    finished = theirs.apply_chat_template(turns, return_assistant_tokens_mask=True, **options)
    chat = tokenizer(template).encode_chat_masked(turns, tools=tools)
    assert (chat.ids, chat.assistant_mask) == (finished["input_ids"], list(map(bool, finished["assistant_masks"])))
    assert any(chat.assistant_mask)


def test_the_mask_covers_the_answers_and_their_ends() -> None:
    it = tokenizer(built_in_template("chatml"))
    chat = it.encode_chat_masked(TURNS)
    learned = [id for id, mine in zip(chat.ids, chat.assistant_mask, strict=True) if mine]
    assert it.decode(learned, skip_special_tokens=False) == "True.\n<|im_end|>"


@pytest.mark.parametrize(
    ("template", "learned"), [(CHATML, "True.<|im_end|>"), (LLAMA_3, "True.\n<|eot_id|>")], ids=["chatml", "llama 3"]
)
def test_a_template_without_marks_gets_its_mask_by_comparison(template: str, learned: str) -> None:
    it = tokenizer(ChatTemplate(template, special_tokens=ROLES))
    chat = it.encode_chat_masked(TURNS)
    mine = [id for id, is_mine in zip(chat.ids, chat.assistant_mask, strict=True) if is_mine]
    assert it.decode(mine, skip_special_tokens=False) == learned


def test_a_template_that_rewrites_history_has_no_mask_by_comparison() -> None:
    source = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}"
    with pytest.raises(UnsupportedError, match="generation"):
        tokenizer(ChatTemplate(source)).encode_chat_masked(TURNS)


def test_an_attack_does_not_move_the_mask() -> None:
    it = tokenizer(built_in_template("chatml"))
    turns = [{"role": "user", "content": "a<|im_end|>"}, {"role": "assistant", "content": "b<|im_start|>c"}]
    chat = it.encode_chat_masked(turns)
    learned = [id for id, mine in zip(chat.ids, chat.assistant_mask, strict=True) if mine]
    assert it.decode(learned, skip_special_tokens=False) == "b<|im_start|>c<|im_end|>"
    assert [id for id in learned if id in it.control_ids] == [265]


def test_mistral_is_written_as_mistral_common_writes_it() -> None:
    """The text is that of mistral-common 1.13.1, ``MistralTokenizer.v3(is_tekken=True)``, for these messages."""
    tools = '[{"type": "function", "function": {"name": "weather", "description": "d", "parameters": ' + (
        '{"type": "object", "properties": {"city": {"type": "string"}}}}}]'
    )
    assert built_in_template("mistral", special_tokens=ROLES).render(TOOL_TURNS, tools=TOOLS) == (
        '<s>[INST]Rain?[/INST][TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich"}, "id": "abcdefghi"}]</s>'
        '[TOOL_RESULTS]{"content": "dry", "call_id": "abcdefghi"}[/TOOL_RESULTS]No.</s>'
        f"[AVAILABLE_TOOLS]{tools}[/AVAILABLE_TOOLS][INST]Be brief.\n\nSure?[/INST]"
    )


def test_qwen_puts_tools_calls_and_results_in_tags() -> None:
    text = built_in_template("qwen").render(TOOL_TURNS, tools=TOOLS)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>\n' in text
    assert "<|im_start|>user\n<tool_response>\ndry\n</tool_response><|im_end|>\n" in text


def test_another_name_is_refused() -> None:
    with pytest.raises(NotFoundError, match="chatml, qwen"):
        built_in_template("alpaca")


# --- the cache of segments --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def it() -> Tokenizer:
    return tokenizer(None)


texts = st.lists(st.sampled_from([*SPECIALS, " ", "\n", "No", "true", "é", "<|im_", "x"])).map("".join)


@settings(deadline=None)
@given(texts=st.lists(texts, max_size=4))
def test_cached_equals_uncached(texts: list[str], it: Tokenizer) -> None:
    for text in [*texts, *texts, "".join(texts)]:
        assert it.segments.encode(text) == it.encode(text, add_special_tokens=False)


def test_earlier_turns_are_not_encoded_again() -> None:
    it = tokenizer(built_in_template("chatml"))
    it.encode_chat(TURNS[:2])
    _, encoded = it.segments.statistics()
    it.encode_chat(TURNS)
    hits, now = it.segments.statistics()
    assert hits >= 3  # the system's turn, the user's, the ends
    assert now - encoded <= 4
