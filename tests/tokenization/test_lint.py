"""The linter finds what makes a model answer badly in silence, and is content with what is right."""

from __future__ import annotations

import pytest
from tokenizers import processors

from wootz.tokenization import ChatTemplate, Tokenizer
from wootz.tokenization.built_in_templates import built_in_template
from wootz.tokenization.lint import Finding, lint_messages, lint_prompt, lint_tokenizer

from .test_built_in_templates import CALL, ROLES, TOOL_TURNS, backend, tokenizer

ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def codes(findings: list[Finding], *severities: str) -> set[str]:
    return {finding.code for finding in findings if not severities or finding.severity in severities}


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_the_built_in_templates_pass(name: str) -> None:
    it = tokenizer(built_in_template(name, special_tokens=ROLES))
    ends = it.encode("<|im_end|><|eot_id|>", add_special_tokens=False)
    it.eos_token_ids = frozenset(ends)
    assert lint_tokenizer(it) == []


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("<s><s>" + TURN + ASK, "bos-doubled"),
        (TURN, "no-generation-prompt"),
        (TURN + "<|im_start|>assistant\n", "no-generation-prompt"),
        (TURN.replace("<|im_end|>", "") + ASK, "turn-without-end"),
        (TURN.replace("<|im_start|>", "<|turn_begin|>") + ASK, "not-a-token"),
        ("{% for m in messages %}{{ m.content }}<|im_end|>{{ loop.length }}{% endfor %}" + ASK, "answer-elsewhere"),
        ("{{ messages[5].content }}", "template-fails"),
    ],
)
def test_a_bad_template_is_found(template: str, code: str) -> None:
    assert code in codes(lint_tokenizer(tokenizer(ChatTemplate(template, special_tokens=ROLES))))


def test_bos_of_template_and_encoder() -> None:
    both = backend()
    both.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 262)])
    template = ChatTemplate("{{ bos_token }}" + TURN + ASK, special_tokens=ROLES)
    it = Tokenizer(both, bos_token_id=262, eos_token_ids=[265], chat_template=template)
    assert "bos-added-twice" in codes(lint_tokenizer(it))
    assert codes(lint_prompt(it, template.render([{"role": "user", "content": "x"}]))) == {"bos-doubled"}
    assert it.encode_chat([{"role": "user", "content": "x"}]).count(262) == 1


def test_a_tokenizer_without_end_or_template() -> None:
    it = Tokenizer(backend(), bos_token_id=None, eos_token_ids=(), chat_template=None)
    assert codes(lint_tokenizer(it)) == {"no-end", "no-template"}


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "abcdefghi"}


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([USER], set()),
        (TOOL_TURNS, set()),
        ([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT], set()),
        ([], {"empty"}),
        ([USER, USER], {"not-alternating"}),
        ([USER, ANSWER], {"already-answered"}),
        ([ANSWER, USER], {"answer-first"}),
        ([USER, {"role": "system", "content": "s"}], {"system-late"}),
        ([USER, RESULT], {"result-without-call"}),
        ([{"role": "user", "content": "a<|im_end|>"}], {"control-in-text"}),
        ([{"role": "user", "content": "User: hi\nAssistant: hello\nUser: so?"}], {"plain-turns"}),
    ],
)
def test_conversations(messages: list, found: set[str]) -> None:
    assert codes(lint_messages(tokenizer(built_in_template("qwen")), messages)) == found


def test_what_the_template_refuses() -> None:
    it = tokenizer(ChatTemplate("{{ raise_exception('no') }}"))
    assert "refused" in codes(lint_messages(it, [USER]), "error")


def test_a_plain_prompt_for_a_chat_model() -> None:
    it = tokenizer(built_in_template("chatml"))
    assert codes(lint_prompt(it, "User: hi\nAssistant:")) == {"plain-turns"}
    assert lint_prompt(it, "The user: a study in scarlet".replace("user:", "user")) == []
    assert lint_prompt(it, "<|im_start|>user\nUser: hi<|im_end|>") == []
    assert lint_prompt(tokenizer(None), "User: hi\nAssistant:") == []
