"""Whatever a model would like to say: a whole answer is what its grammar accepts, and one that is not whole says so."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import regex
import torch
from random_schemas import random_schema
from tiny_model import write_tiny_model

from wootz.core import BadRequestError, EngineConfig, SpeculationConfig, UnsupportedError
from wootz.engine import Engine, SamplingParams
from wootz.engine.generation import Choice
from wootz.engine.grammar import GrammarCompiler
from wootz.engine.protocol import StructuredOutput, ToolUse
from wootz.engine.speculation.draft_model import DraftModel
from wootz.engine.structure import content_grammar
from wootz.models import load
from wootz.tokenization import ByteTokenizer, load_tokenizer
from wootz.tokenization.tool_formats import TOOL_FORMATS

SUITE = Path.home() / ".cache" / "wootz-tests" / "jsonschema-4.26.0.tar.gz"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "colour": {"enum": ["red", "green"]},
    },
    "required": ["name", "age", "colour"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Hello"}]
TOOLS = [
    {"type": "function", "function": {"name": "person", "description": "Someone.", "parameters": PERSON}},
    {"type": "function", "function": {"name": "nothing"}},
]


@lru_cache
def engine(folder: Path, **config) -> Engine:
    """In float64, so that another order of additions never changes a token."""
    model = load(folder).double()
    config = {"cache_bytes": 40_000_000, "threads": 1} | config
    return Engine(model, tokenizer=load_tokenizer(folder), config=EngineConfig(**config))


def params(structured: StructuredOutput | None = None, **fields) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 200, "temperature": 2.0, "seed": 1, "structured": structured} | fields)


def json_of(schema: dict[str, Any] | bool, **fields) -> SamplingParams:
    return params(StructuredOutput(json_schema=schema), **fields)


def choices(engine: Engine, prompt: Any, sampling: SamplingParams, **options) -> list[Choice]:
    return engine.generate([prompt], sampling, **options)[0].choices


# --- schemas --------------------------------------------------------------------------------------------------


def test_every_whole_answer_is_valid(tiny_folder: Path) -> None:
    assert check_random_schemas(engine(tiny_folder), range(100), both=False) > 60


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_whole_answer_is_valid_for_many_schemas(tiny_folder: Path) -> None:
    talker = engine(tiny_folder)
    whole = sum(check_random_schemas(talker, range(n, n + 250), both=True) for n in range(0, 5000, 250))
    assert whole > 7000


def check_random_schemas(engine: Engine, seeds: range, *, both: bool) -> int:
    """Greedy and at temperature 2, in turns or ``both`` for each; returns how many answers were whole and checked."""
    schemas = [random_schema(seed) for seed in seeds for _ in range(1 + both)]
    sampling = [json_of(s, temperature=2.0 * (n % 2), seed=n, max_tokens=100) for n, s in enumerate(schemas)]
    whole = 0
    for schema, answer in zip(schemas, engine.generate(["Say it: "] * len(schemas), sampling), strict=True):
        if answer.finish_reason == "stop":
            whole += 1
            assert answer.choices[0].guarantee == "schema"
            check(schema, answer.text)
        else:
            assert answer.finish_reason == "length"
            assert answer.choices[0].guarantee is None
    engine.scheduler.check_integrity()
    return whole


class Calendar(jsonschema.FormatChecker):
    """Python's begins in the year 1, RFC 3339's (and so JSON Schema's) in the year 0, a leap year like 2000."""

    checkers = jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers

    def check(self, instance: object, format: str) -> None:
        if isinstance(instance, str) and instance.startswith("0000-"):
            instance = "2000" + instance[4:]
        super().check(instance, format)


def check(schema: dict[str, Any] | bool, text: str) -> None:
    jsonschema.Draft202012Validator(schema, format_checker=Calendar()).validate(json.loads(text))


def test_drafts_and_grammars_meet_in_one_step(tiny_folder: Path) -> None:
    """Answers with a grammar and answers that are drafted, in a cache that is too small for all of them."""
    model, draft = load(tiny_folder).double(), DraftModel(load(tiny_folder).double(), load(tiny_folder))
    draft.cost = 0
    small = EngineConfig(cache_bytes=300_000, speculation=SpeculationConfig(row_cost=0))
    together = Engine(model, tokenizer=load_tokenizer(tiny_folder), config=small, speculator=draft)
    sampling = [
        json_of(PERSON, n=2, max_tokens=100),
        params(n=2, max_tokens=60),
        json_of(PERSON, max_tokens=100),
        params(temperature=0, max_tokens=100),
    ] * 2
    prompts = ["x", "Say it: ", "y", "z"] * 2
    pairs = zip(together.generate(prompts, sampling), engine(tiny_folder).generate(prompts, sampling), strict=True)
    for answer, alone in pairs:
        assert [choice.token_ids for choice in answer.choices] == [choice.token_ids for choice in alone.choices]
    together.scheduler.check_integrity()
    stats = together.stats()
    assert 0 not in (stats.tokens_forced, stats.draft_tokens_accepted, stats.preemptions)


def test_an_answer_ends_only_where_it_is_whole(tiny_folder: Path) -> None:
    """A model that wants nothing but to end has to say all that is required first."""
    wants_to_end = dict.fromkeys(engine(tiny_folder).eos_token_ids, 100.0)
    for temperature in (0, 1.0):
        (answer,) = choices(engine(tiny_folder), "x", json_of(PERSON, logit_bias=wants_to_end, temperature=temperature))
        check(PERSON, answer.text)
        (answer,) = choices(engine(tiny_folder), "x", json_of(PERSON, ignore_eos=True, min_tokens=150))
        check(PERSON, answer.text)


# --- the official cases -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite() -> list[tuple[str, dict[str, Any]]]:
    """JSON-Schema-Test-Suite, draft 2020-12, as jsonschema's source package carries it."""
    if not SUITE.exists():
        SUITE.parent.mkdir(parents=True, exist_ok=True)
        command = ["pip", "download", "-q", "--no-deps", "--no-binary", "jsonschema", "-d", str(SUITE.parent)]
        if subprocess.run([sys.executable, "-m", *command, "jsonschema==4.26.0"], check=False).returncode:
            pytest.skip("the source package of jsonschema can't be fetched")
    with tarfile.open(SUITE) as archive:
        files = [
            name for name in archive.getnames() if "/json/tests/draft2020-12/" in name and "/optional/" not in name
        ]
        groups = [(Path(f).stem, json.load(archive.extractfile(f))) for f in sorted(files) if f.endswith(".json")]
    return [(name, group) for name, part in groups for group in part]


def test_no_invalid_case_of_the_official_suite_is_accepted(suite: list[tuple[str, dict[str, Any]]]) -> None:
    """What is supported is sound, what is not is refused; of the valid cases, those stay out that are spelled in
    another order of keys, or with a number in another form."""
    tokenizer = ByteTokenizer()
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)
    refused, accepted, missed = 0, 0, 0
    for name, group in suite:
        grammar = content_grammar(StructuredOutput(json_schema=group["schema"]))
        try:
            matcher = compiler.compile(json.dumps({"grammars": [grammar]}), param="schema")
        except BadRequestError:
            refused += 1
            continue
        for case in group["tests"]:
            place, ids = matcher.deep_copy(), tokenizer.encode(json.dumps(case["data"]), add_special_tokens=False)
            is_accepted = place.try_consume_tokens(ids) == len(ids) and place.is_accepting()
            assert case["valid"] or not is_accepted, (name, group["description"], case["description"])
            accepted += is_accepted
            missed += case["valid"] and not is_accepted
    assert refused <= 204
    assert accepted >= 328
    assert missed <= 24


def test_answers_to_the_official_suite_are_valid(tiny_folder: Path, suite: list[tuple[str, dict[str, Any]]]) -> None:
    asked, sampling = [], []
    for number, (_, group) in enumerate(suite):
        try:
            one = json_of(group["schema"], seed=number, max_tokens=40)
            engine(tiny_folder).make_request("x", one)
        except BadRequestError:
            continue
        asked.append(group["schema"])
        sampling.append(one)
    answers = engine(tiny_folder).generate(["x"] * len(asked), sampling)
    whole = [(schema, a.text) for schema, a in zip(asked, answers, strict=True) if a.finish_reason == "stop"]
    assert len(whole) > 100
    for schema, text in whole:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    ("structured", "reason"),
    [
        (StructuredOutput(json_schema={"uniqueItems": True}), "uniqueItems"),
        (StructuredOutput(json_schema={"$ref": "#/nowhere"}), "nowhere"),
        (StructuredOutput(json_schema={"type": "nonsense"}), "nonsense"),
        (StructuredOutput(json_schema=False), "false"),
        (StructuredOutput(regex="(a"), "unclosed"),
        (StructuredOutput(grammar="start: nowhere"), "nowhere"),
        (StructuredOutput(grammar="root ::= (((", param="guided_grammar"), "guided_grammar"),
    ],
)
def test_what_can_not_be_enforced_is_refused(tiny_folder: Path, structured: StructuredOutput, reason: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        engine(tiny_folder).make_request("x", params(structured))
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.param == structured.param


# --- other structures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0, 2.0])
def test_expressions_choices_and_grammars(tiny_folder: Path, temperature: float) -> None:
    expression = r"[a-cé]{3}(-\d{2}|😀)x?"
    (answer,) = choices(engine(tiny_folder), "x", params(StructuredOutput(regex=expression), temperature=temperature))
    assert regex.fullmatch(expression, answer.text)
    texts = ("yes", "no", "may be")
    (answer,) = choices(engine(tiny_folder), "x", params(StructuredOutput(choice=texts), temperature=temperature))
    assert answer.text in texts
    sums = "root ::= term ([-+] term)*\nterm ::= [0-9]{1,3} | \"(\" root \")\"\n"  # fmt: skip
    lark = 'start: term (("+"|"-") term)*\nterm: /[0-9]{1,3}/ | "(" start ")"\n'
    for grammar in (sums, lark):
        sampled = params(StructuredOutput(grammar=grammar), temperature=temperature, n=4, max_tokens=60)
        for answer in choices(engine(tiny_folder), "x", sampled):
            if answer.finish_reason == "stop":
                compile(regex.sub(r"\b0+(?=\d)", "", answer.text), "sum", "eval")
    (answer,) = choices(engine(tiny_folder), "x", params(StructuredOutput(json_object=True), temperature=2.0))
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)
        assert answer.guarantee == "json"


def test_a_sentencepiece_vocabulary_follows_too(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    folder = write_tiny_model(tmp_path / "pieces")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": b + 3 for b in range(256)}
    for text in ("▁", *'abcdefgnamegrdcolu"{}:,0123456789', "▁{", '"name', '":', "▁red", "green", '▁"'):
        vocabulary.setdefault(text, len(vocabulary))
    pieces = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces.add_special_tokens(["<s>", "</s>"])
    pieces.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for temperature in (0, 2.0):
        (answer,) = choices(engine(folder), "a", json_of(PERSON, temperature=temperature))
        check(PERSON, answer.text)
    assert engine(folder).stats().tokens_forced > 0


# --- in company, cut off, forced --------------------------------------------------------------------------------


def test_the_company_does_not_matter(tiny_folder: Path) -> None:
    """Batched, forked, preempted and cut into chunks, each constrained answer is what it is alone."""
    sampling = [json_of(random_schema(n), n=1 + n % 3, seed=n, max_tokens=40) for n in range(9)]
    sampling[::4] = [params(seed=n, max_tokens=40) for n in range(3)]
    prompts = [f"Prompt number {n % 3}, as long as it is: " for n in range(9)]
    alone = [engine(tiny_folder).generate([p], s)[0] for p, s in zip(prompts, sampling, strict=True)]
    small = engine(tiny_folder, cache_bytes=110_000, block_size=2, max_running=5, max_step_tokens=7, max_model_len=70)
    together = small.generate(prompts, sampling)
    assert small.stats().preemptions > 0
    assert small.stats().tokens_forced > 0
    assert small.stats().blocks_used == 0
    for one, same in zip(alone, together, strict=True):
        assert [choice.token_ids for choice in one.choices] == [choice.token_ids for choice in same.choices]


def test_forced_tokens_take_no_step_of_their_own(tiny_folder: Path) -> None:
    fresh = Engine(load(tiny_folder), tokenizer=load_tokenizer(tiny_folder), config=EngineConfig(cache_bytes=10**7))
    text = "a sentence that leaves nobody any choice at all"
    answer = fresh.generate(["x"], json_of({"const": text}))[0]
    assert json.loads(answer.text) == text
    assert fresh.stats().tokens_forced > 10
    assert fresh.stats().steps <= 3
    with_logprobs = fresh.generate(["x"], json_of({"const": text}, logprobs=1))[0]
    assert json.loads(with_logprobs.text) == text
    assert len(with_logprobs.logprobs or []) == len(with_logprobs.token_ids)


def test_a_grammar_is_compiled_once(tiny_folder: Path) -> None:
    before = engine(tiny_folder).stats()
    schema = {"const": "compiled once"}
    engine(tiny_folder).generate(["x"] * 5, json_of(schema))
    after = engine(tiny_folder).stats()
    assert after.grammars_compiled == before.grammars_compiled + 1
    assert after.grammars_reused == before.grammars_reused + 4


def test_what_is_cut_off_says_so(tiny_folder: Path) -> None:
    for length in range(1, 12):
        (answer,) = choices(engine(tiny_folder), "x", json_of(PERSON, max_tokens=length))
        assert (answer.finish_reason, answer.guarantee) == ("length", None)
        assert len(answer.token_ids) == length


def test_stop_strings_do_not_cut_a_structure(tiny_folder: Path) -> None:
    stops = ("e", '"', ":", "}", "name")
    comma = load_tokenizer(tiny_folder).encode(",", add_special_tokens=False)
    (answer,) = choices(engine(tiny_folder), "x", json_of(PERSON, stop=stops, stop_token_ids=tuple(comma)))
    assert answer.finish_reason == "stop"
    check(PERSON, answer.text)
    free = choices(engine(tiny_folder), ASK, params(stop=stops), tools=ToolUse(tools=TOOLS))[0]
    assert free.stop_reason in stops


# --- tools ------------------------------------------------------------------------------------------------------


def called(answer: Choice) -> Iterator[tuple[str, str]]:
    pieces: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for delta in answer.tool_calls:
        assert not delta.incomplete
        names.setdefault(delta.index, delta.name or "")
        pieces.setdefault(delta.index, []).append(delta.arguments)
    return ((names[index], "".join(pieces[index])) for index in names)


@pytest.mark.parametrize("format", TOOL_FORMATS)
def test_every_call_is_of_a_tool_and_valid(tiny_folder: Path, format: str) -> None:
    talker = engine(tiny_folder, tool_format=format)
    whole = 0
    for use in (
        ToolUse(tools=TOOLS, choice="required", parallel=True),
        ToolUse(tools=TOOLS, choice="required", name="person", parallel=False),
    ):
        for answer in choices(talker, ASK, params(n=2, seed=7, max_tokens=250), tools=use):
            assert answer.finish_reason in ("tool_calls", "length")
            if answer.finish_reason == "length":
                continue
            whole += 1
            calls = list(called(answer))
            assert answer.guarantee == "schema"
            assert answer.text == ""
            assert calls
            assert use.parallel or len(calls) == 1
            for name, arguments in calls:
                assert name == "person" or (name == "nothing" and use.name is None)
                if name == "nothing":
                    assert json.loads(arguments) == {}
                elif format == "qwen_xml":  # a string stands there as it is; how long it is nobody counts
                    check({**PERSON, "properties": {**PERSON["properties"], "name": {"type": "string"}}}, arguments)
                else:
                    check(PERSON, arguments)
    assert whole >= (0 if format in ("qwen_xml", "harmony") else 1)  # those have free text in them


def test_a_call_that_is_cut_off_is_marked(tiny_folder: Path) -> None:
    use = ToolUse(tools=TOOLS, choice="required", name="person")
    (answer,) = choices(engine(tiny_folder), ASK, params(max_tokens=16, logprobs=0), tools=use)
    assert answer.finish_reason == "length"
    assert answer.guarantee is None
    (whole,) = choices(engine(tiny_folder), ASK, params(max_tokens=40), tools=use)
    assert whole.finish_reason == "length" or not any(delta.incomplete for delta in whole.tool_calls)
    begun = [delta for delta in answer.tool_calls if delta.name]
    assert not begun or answer.tool_calls[-1].incomplete


def test_with_auto_the_constraint_begins_at_the_trigger(tiny_folder: Path) -> None:
    talker = engine(tiny_folder)
    request = talker.make_request(ASK, params(), tools=ToolUse(tools=TOOLS))
    constraint = request.plan.grammar.begin()
    for text, may_stop in (("Let me see.", True), (" <tool", True), ("_call>", False)):
        for token in talker.tokenizer.encode(text, add_special_tokens=False):
            constraint.accept(token)
        assert constraint.may_stop == may_stop
    assert constraint.next_forced()
    rest = '\n{"name": "nothing", "arguments": {}}\n</tool_call>'
    for token in talker.tokenizer.encode(rest, add_special_tokens=False):
        constraint.accept(token)
    assert constraint.is_whole
    assert constraint.guarantee("tool_calls") == "schema"


def test_a_schema_that_is_not_supported_is_refused_if_strict(tiny_folder: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    function = {"name": "f", "parameters": schema}
    loose = ToolUse(tools=[{"type": "function", "function": function}], choice="required")
    answer = choices(engine(tiny_folder), ASK, params(n=2, seed=3, max_tokens=80), tools=loose)
    assert {one.guarantee for one in answer if one.finish_reason == "tool_calls"} <= {"json"}
    strict = ToolUse(tools=[{"type": "function", "function": function | {"strict": True}}])
    with pytest.raises(BadRequestError) as refusal:
        engine(tiny_folder).make_request(ASK, params(), tools=strict)
    assert refusal.value.param == "tools[0].function.parameters"


def test_calls_or_a_structured_text(tiny_folder: Path) -> None:
    answers = choices(
        engine(tiny_folder),
        ASK,
        json_of({"type": "integer"}, n=4, seed=5, max_tokens=80),
        tools=ToolUse(tools=TOOLS, parallel=False),
    )
    for answer in answers:
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), int)
        elif answer.finish_reason == "tool_calls":
            assert len(list(called(answer))) == 1
    with pytest.raises(UnsupportedError):
        engine(tiny_folder, tool_format="llama3").make_request(ASK, json_of(PERSON), tools=ToolUse(tools=TOOLS))


def test_a_model_that_thinks_thinks_before_its_structure(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "thinker")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] += "{# </think> #}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for opening, said in (("", "<think>Well</think>\n\n"), ("", ""), ("<think>\n", "Well</think>")):
        settings["chat_template"] = settings["chat_template"].replace(
            "assistant\n{% endif", f"assistant\n{opening}{{% endif"
        )
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        thinker = Engine(load(folder), tokenizer=load_tokenizer(folder), config=EngineConfig(cache_bytes=10**7))
        request = thinker.make_request(ASK, json_of({"type": "integer"}))
        constraint, answer = request.plan.grammar.begin(), request.plan.new_answer()
        for token in thinker.tokenizer.encode(said + "12", add_special_tokens=False):
            constraint.accept(token)
        assert constraint.is_whole, opening
        parts = answer.parts(said + "12", over=True)
        assert (parts.text, parts.reasoning) == ("12", "Well" if said else "")


def test_an_engine_without_a_tokenizer_has_no_grammars() -> None:
    from one_by_one import tiny_engine

    with pytest.raises(BadRequestError):
        tiny_engine(10).make_request([1], json_of(True))
    assert torch.get_num_threads() == 1
