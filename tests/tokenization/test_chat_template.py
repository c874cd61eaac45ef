"""Chat templates render what transformers renders, and cannot do what a template has no business doing."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from jinja2 import TemplateError

from wootz.core import BadRequestError, ModelFileError, UnsupportedError
from wootz.tokenization import ChatTemplate, Tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\nBe brief.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if loop.index0 == 0 and system != false %}
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if tools is not none %}{%- set with_tools = true %}{%- else %}{%- set with_tools = false %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if with_tools %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one tool call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL = """\
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- if (ns.index % 2) != 0 %}{{- raise_exception("roles must alternate") }}{%- endif %}
        {%- set ns.index = ns.index + 1 %}
        {%- if loop.last and tools %}{{- "[AVAILABLE_TOOLS] " + tools|tojson + "[/AVAILABLE_TOOLS]" }}{%- endif %}
        {{- "[INST] " ~ message.content ~ "[/INST]" }}
    {%- elif message.role == "assistant" %}
        {%- set ns.index = ns.index + 1 %}
        {%- generation %}{{- " " ~ message.content ~ eos_token }}{%- endgeneration %}
    {%- else %}{%- continue %}{%- endif %}
{%- endfor %}
"""

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- macro thought(text) %}<think>\\n{{ text.split('</think>')[0].lstrip('\\n') }}</think>{% endmacro %}
{%- for message in messages[::-1] | reverse %}
    {%- if message.role == "user" %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant' }}
        {%- if message.reasoning_content %}{{- thought(message.reasoning_content) }}{%- endif %}
        {%- if message.content is string and message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson ~ '}' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem is undefined or loop.previtem.role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>' ~ message.content ~ '</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
{{- '' if loop is defined else messages | map(attribute='role') | join(',') }}
"""

TEMPLATES = {"chatml": CHATML, "llama 2": LLAMA_2, "llama 3": LLAMA_3, "mistral": MISTRAL, "qwen": QWEN}

TURNS = [
    {"role": "system", "content": "You are <b>terse</b>."},
    {"role": "user", "content": "  What's 2 < 3 & 'é' in 中文?  "},
    {"role": "assistant", "content": "True.\n"},
    {"role": "user", "content": "🤖"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string", "x": "é<&"}}}}]
TOOL_TURNS = [
    {"role": "user", "content": "Rain?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "\n\nhm",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}],
    },
    {"role": "tool", "content": "dry"},
    {"role": "tool", "content": "cold"},
    {"role": "assistant", "content": "No."},
]


def render(template: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplate(template, special_tokens=SPECIAL).render(messages or TURNS, **options)


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize(
    "messages", [TURNS, TURNS[1:], TURNS[1:2], TOOL_TURNS], ids=["system", "plain", "one", "tools"]
)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "with tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_as_transformers_renders(
    name: str, messages: list, tools: list | None, add_generation_prompt: bool, transformers_tokenizer: Any
) -> None:
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    try:
        theirs = transformers_tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATES[name], tokenize=False, **options
        )
    except TemplateError as error:  # Llama 2 wants alternating turns, so it refuses tool results
        with pytest.raises(BadRequestError, match=str(error)):
            render(TEMPLATES[name], messages, **options)
    else:
        assert render(TEMPLATES[name], messages, **options) == theirs


def test_the_date_can_be_asked_for() -> None:
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_the_embedded_model_chats(smollm2: Tokenizer) -> None:
    ids = smollm2.encode_chat([{"role": "user", "content": "hi"}])
    assert smollm2.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[:2] == [1, 9690]


# --- what goes wrong is the request's error, in one line ------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (LLAMA_2, [TURNS[1], TURNS[1]], "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("{{ raise_exception('two\nlines') }}", TURNS, "two lines"),
        ("{{ messages[0].role + messages[0].content }}", [{"role": "user", "content": None}], "NoneType"),
        ("{{ messages[9].content }}", TURNS, "no element 9"),
        ("{{ 1 / 0 }}", TURNS, "division by zero"),
        ("{{ nothing.at.all }}", TURNS, "'nothing' is undefined"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", TURNS, "recursion"),
    ],
)
def test_a_failing_template_is_a_bad_request(template: str, messages: list, says: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        render(template, messages)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.param == "messages"


def test_a_broken_template_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ModelFileError, match="chat template, line 2: "):
        ChatTemplate("{% if true %}\n{% endfor %}")


def test_a_model_without_a_template_cannot_chat() -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = Tokenizer(backend, bos_token_id=None, eos_token_ids=(), chat_template=None)
    with pytest.raises(UnsupportedError, match="no chat template"):
        tokenizer.encode_chat(TURNS)


# --- the sandbox ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}{{ ''['__class__'].__mro__[1].__subclasses__() }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__['datetime'] }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ namespace.__init__.__globals__.x }}",
        "{{ self._TemplateReference__context.environment.from_string('x') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ '{0.__class__}'|format('') ~ ('%s'.__mod__)('x') }}",
        "{{ ([''.format]|map('attr', '__globals__')|list|first).x }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ dict.update(messages[0], role='x') }}",
        "{{ tojson.__globals__ }}{{ lipsum.__globals__['os'] }}",
    ],
)
def test_python_is_out_of_reach(attack: str) -> None:
    messages = [dict(turn) for turn in TURNS]
    with pytest.raises(BadRequestError):
        render(attack, messages)
    assert messages == TURNS


@pytest.mark.parametrize(
    "bomb",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = 'ab' * 999 %}{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% for x in [[[]]] recursive %}{{ loop([x, x]) }}{{ loop([x, x]) }}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 10**10 * [0] }}",
        "{{ 9 ** (9**9) }}",
        "{% set n = namespace(x=9**9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    ],
)
def test_a_template_cannot_run_away(bomb: str) -> None:
    with pytest.raises(BadRequestError):
        render(bomb)


def test_long_conversations_are_within_bounds() -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(9_999)]
    for template in TEMPLATES.values():
        assert render(template, turns).count("x") >= 9_999
