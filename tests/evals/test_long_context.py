"""The harness measures readers whose limits are known: it must find exactly those."""

from __future__ import annotations

import json
import random

import pytest
from scripted_readers import Reader, count_words, documents_of, last, seen_through, solve

from wootz.core import BadRequestError, UnsupportedError
from wootz.evals import long_context as ctx
from wootz.evals.long_context.aggregation import zipf_counts
from wootz.evals.long_context.case import any_whole_words, string_match_all, string_match_part, whole_words

LENGTHS = [512, 1024, 2048]
DEPTHS = [0, 0.25, 0.5, 0.75, 1]

RULER_13 = [
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
]  # fmt: skip


def everything(setup: ctx.Setup) -> list[ctx.Case]:
    return [
        *ctx.needle_cases(setup, LENGTHS, DEPTHS, 1, ["end", "start", "both"]),
        *ctx.multi_needle_cases(setup, LENGTHS, [2, 5], 1),
        *ctx.chain_cases(setup, LENGTHS, 3),
        *ctx.ruler_cases(setup, LENGTHS, 2),
        *ctx.lost_in_the_middle_cases(setup, positions=[1, 10, 20], samples=2),
        *ctx.lost_in_the_middle_cases(setup, positions=[1, 10, 20], samples=1, lengths=LENGTHS),
    ]


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
async def test_a_reader_of_everything_scores_100_percent(ask, chat):
    setup = ctx.Setup(count=count_words, chat=chat)
    cases = everything(setup)
    rows = await ask(Reader(solve), cases, chat=chat, concurrency=4)
    assert [row.id for row in rows if row.score < 1] == []
    assert {row.task for row in rows} >= set(RULER_13)
    assert ctx.effective_length(ctx.by_length(rows)) == 2048


async def test_a_reader_of_nothing_scores_zero(ask, setup):
    blind = Reader(lambda prompt: "The answer is 42, Paris, or the door.")
    rows = await ask(blind, everything(setup))
    assert [row.id for row in rows if row.score > 0] == []
    assert ctx.effective_length(ctx.by_length(rows)) == 0


def test_ruler_has_the_papers_13_tasks():
    assert list(ctx.ruler_tasks()) == RULER_13


async def test_a_window_that_slid_is_found_to_the_cell(ask, setup):
    """It sees the last 600 tokens: a needle is found exactly when it lies within those, wherever that is in a cell."""
    cases = ctx.needle_cases(setup, [512, 1024, 2048], DEPTHS, 2)
    model = Reader(solve, last(600))
    rows = await ask(model, cases)
    for row, prompt in zip(rows, model.prompts, strict=True):
        distance = count_words(prompt[prompt.index("One of the special magic") :])
        assert row.score == (distance <= 600), row.id
    assert {row.score for row in rows if row.length == 512} == {1.0}
    assert {row.depth for row in rows if row.length == 2048 and row.score} == {0.75, 1}
    assert ctx.effective_length(ctx.by_length(rows)) == 512


async def test_claimed_and_working_context_differ_and_the_gate_says_so(ask, setup):
    rows = await ask(
        Reader(solve, last(600)), ctx.ruler_cases(setup, LENGTHS, 4, ["niah_single_2", "vt", "cwe", "qa_1"])
    )
    found = ctx.working_context(rows, claimed=2048)
    assert (found.claimed, found.working, found.gap) == (2048, 512, 4.0)
    assert found.misses(require=512, max_gap=4) == []
    assert len(found.misses(require=1024, max_gap=2)) == 2
    blind = await ask(Reader(lambda prompt: "no idea"), ctx.needle_cases(setup, [512], [0.5], 2))
    nothing = ctx.working_context(blind, claimed=512)
    assert nothing.gap is None
    assert nothing.misses(max_gap=100)


async def test_a_reader_that_overlooks_the_middle_shows_the_u_curve_and_its_depth(ask, setup):
    """Found with probability 0.9 at the first and last four places and 0.4 between: the index is near 50 points."""
    rng = random.Random(1)
    sees = seen_through(lambda position, total: rng.random() < (0.9 if position <= 4 or position > total - 4 else 0.4))
    cases = ctx.lost_in_the_middle_cases(setup, positions=range(1, 21), samples=40)
    rows = await ask(Reader(solve, sees), cases)
    dip = ctx.middle_dip(rows)
    assert dip is not None
    assert dip.beginning == pytest.approx(0.9, abs=0.06)
    assert dip.middle == pytest.approx(0.4, abs=0.06)
    assert dip.end == pytest.approx(0.9, abs=0.06)
    assert dip.index == pytest.approx(0.5, abs=0.08)
    even = ctx.middle_dip(await ask(Reader(solve), cases[::5]))
    assert even is not None
    assert even.index == 0


def test_the_gold_document_stands_where_it_should(setup):
    cases = ctx.lost_in_the_middle_cases(setup, positions=range(1, 21), samples=1)
    questions = [case.build() for case in cases]
    for position, question in enumerate(questions, 1):
        documents = documents_of(question.prompt)
        assert len(documents) == 20
        assert [number for number, text in enumerate(documents, 1) if question.expected[0] in text] == [position]
    assert len({frozenset(documents_of(question.prompt)) for question in questions}) == 1


def test_prompts_and_answers_fill_the_length_exactly(setup):
    """In a haystack to the token; in a list of items nearly so, and never above."""
    for case in everything(setup):
        question = case.build()
        total = count_words(question.prompt) + question.max_tokens
        if case.length == ctx.AS_IT_IS:
            continue
        assert total <= case.length, case.id
        exact = not case.task.startswith(("niah_multikey_2", "niah_multikey_3", "cwe", "fwe", "qa_", "lost"))
        assert total == case.length if exact else total > case.length - 60, case.id


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_needle_lies_at_its_depth(setup, depth):
    question = ctx.needle_cases(setup, [4096], [depth], 1)[0].build()
    _, text, _ = question.prompt.split("\n\n")
    before = count_words(text[: text.index("One of the special")])
    assert before / count_words(text) == pytest.approx(depth, abs=0.01)


def test_among_other_needles_the_asked_one_may_lie_anywhere(setup):
    places = []
    for case in ctx.ruler_cases(setup, [1024], 12, ["niah_multikey_2"]):
        question = case.build()
        _, text, _ = question.prompt.split("\n\n")
        lines = text.splitlines()
        (place,) = [number for number, line in enumerate(lines) if question.expected[0] in line]
        places.append(place / (len(lines) - 1))
    assert min(places) < 0.25
    assert max(places) > 0.75


def test_only_the_depth_and_the_questions_place_differ_within_a_sample(setup):
    cases = ctx.needle_cases(setup, [512], [0, 1], 1, ["end", "start"])
    questions = [case.build() for case in cases]
    assert len({question.expected for question in questions}) == 1
    assert len({tuple(sorted(question.prompt.split())) for question in questions}) == 1
    assert len({question.prompt for question in questions}) == 4


def test_a_seed_is_a_function_and_another_seed_another_text(setup):
    def prompts(seed: int) -> list[str]:
        again = ctx.Setup(count=count_words, seed=seed)
        return [case.build().prompt for case in ctx.ruler_cases(again, [1024], 1)]

    assert prompts(0) == prompts(0)
    assert not set(prompts(0)) & set(prompts(1))


async def test_question_at_the_start_and_at_the_end_are_compared_case_by_case(ask, setup):
    """A window that slid loses a question at the start; nobody else's answer changes."""
    cases = ctx.needle_cases(setup, [1024], [1], 8, ["end", "start"])
    (pair,) = ctx.compare_layouts(await ask(Reader(solve, last(300)), cases))
    assert (pair.first, pair.second, pair.first_better, pair.second_better) == ("end", "start", 8, 0)
    assert pair.difference == 1
    assert pair.p_value == pytest.approx(2 / 2**8)
    (pair,) = ctx.compare_layouts(await ask(Reader(solve), cases))
    assert (pair.equal, pair.p_value) == (8, 1.0)


def test_documents_go_to_the_edges():
    assert ctx.to_the_edges(range(1, 8)) == [1, 3, 5, 7, 6, 4, 2]
    assert ctx.to_the_edges([]) == []


def test_inputs_of_a_calculation_stand_beside_the_question():
    prompt = ctx.lay_out("long text", "What is a + b?", near_question=["a = 1", "b = 2"], instruction="Calculate.")
    assert prompt == "Calculate.\n\nlong text\n\na = 1\nb = 2\n\nWhat is a + b?"
    assert ctx.lay_out("text", "why?", question_at="both") == "why?\n\ntext\n\nwhy?"


async def test_a_window_that_refuses_is_a_failed_length_not_a_failed_run(ask, setup):
    rows = await ask(Reader(solve, window=1024), ctx.needle_cases(setup, LENGTHS, [0.5], 2))
    scores = ctx.by_length(rows)
    assert [scores[length].refused for length in LENGTHS] == [0, 0, 2]
    assert ctx.effective_length(scores) == 1024


async def test_any_other_refusal_ends_the_run(ask, setup):
    class CannotChat(Reader):
        def chat(self, request):
            raise UnsupportedError('model "reader" has no chat template')

    with pytest.raises(UnsupportedError, match="chat template"):
        await ask(CannotChat(solve), ctx.needle_cases(setup, [512], [0.5], 3), concurrency=2)


def test_a_length_with_no_room_for_the_task_is_one_error(setup):
    for case in ctx.ruler_cases(setup, [40], 1):
        with pytest.raises(BadRequestError, match=f"{case.task}: its shortest prompt"):
            case.build()


def test_an_effective_length_has_no_hole_below_it():
    def score(mean: float) -> ctx.Score:
        return ctx.Score(count=10, mean=mean, low=0, high=1, strict=mean, refused=0, prompt_tokens=0)

    scores = {256: score(1), 512: score(0.9), 1024: score(0.5), 2048: score(0.9)}
    assert ctx.effective_length(scores) == 512
    assert ctx.effective_length(scores, 0.9) == 512  # at the threshold is above it
    assert ctx.effective_length(scores, 0.4) == 2048
    assert ctx.effective_length(scores, 0.95) == 256


def test_metrics_are_those_of_the_paper():
    assert string_match_all("It is ALPHA, I think", ["alpha", "beta"]) == 0.5
    assert string_match_part("beta it is", ["alpha", "Beta"]) == 1
    assert string_match_part("gamma", ["alpha", "beta"]) == 0
    assert whole_words("17392", ["7392"]) == 0  # where RULER's substring would say yes
    assert string_match_all("17392", ["7392"]) == 1
    assert any_whole_words("in Paris.", ["London", "paris"]) == 1


@pytest.mark.parametrize("num_words", [27, 41, 53, 200, 5000])
@pytest.mark.parametrize("vocabulary", [6, 40, 600])
def test_the_three_frequent_words_are_never_tied_with_a_fourth(num_words, vocabulary):
    counts = zipf_counts(num_words, vocabulary)
    assert min(counts[1:4]) > max(counts[4:])
    if num_words == 5000:  # Zipf's law with exponent 2
        assert counts[0] / counts[1] == pytest.approx(4, rel=0.01)
        assert counts[1] / counts[3] == pytest.approx(4, rel=0.02)


# --- the user's own data ------------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [
        {"prompt": f"What colour is machine {n}?", "answer": colour, "context": f"Machine {n} was painted {colour}."}
        for n, colour in enumerate(["teal", "ochre", "mauve", "puce"])
    ]
    rows.append({"prompt": "Say yes.", "answer": ["yes", "yeah"]})
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def colour_of(prompt: str) -> str:
    import re

    if "Say yes" in prompt:
        return "Yeah!"
    asked = re.search(r"What colour is machine (\d)", prompt)
    found = asked and re.search(rf"Machine {asked[1]} was painted (\w+)", prompt)
    return found[1] if found else "unknown"


async def test_the_users_own_questions_run_in_the_same_harness(ask, setup, questions):
    cases = ctx.domain_cases(setup, ctx.read_rows(questions), [256, 512], [0, 0.5, 1])
    assert len(cases) == 1 + 4 * 2 * 3
    model = Reader(colour_of)
    rows = await ask(model, cases)
    assert {row.score for row in rows} == {1.0}
    assert ctx.effective_length(ctx.by_length(rows)) == 512
    assert count_words(model.prompts[-1]) == 512 - 128
    near = await ask(Reader(colour_of, last(150)), cases)
    assert ctx.by_length(near)[512].mean < 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1"),
        ('{"prompt": "why?"}', '"answer"'),
        ('{"prompt": 3, "answer": "a"}', '"prompt"'),
        ("", "no rows"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(line)
    with pytest.raises(BadRequestError, match=message):
        ctx.read_rows(file)


def test_a_haystack_of_the_users_own(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("Call me Ishmael. Some years ago I went to sea. It is a way I have.\n")
    setup = ctx.Setup(count=count_words, haystack=ctx.from_file(file))
    question = ctx.needle_cases(setup, [512], [0.5], 1)[0].build()
    assert question.prompt.count("Ishmael") > 10
    assert count_words(question.prompt) + question.max_tokens == 512
    with pytest.raises(BadRequestError, match="can't be read"):
        ctx.from_file(tmp_path / "none.txt")


def test_squad_questions_take_the_place_of_ours(tmp_path, setup):
    paragraphs = [
        {
            "context": f"Town {n} lies on river {n * 7}.",
            "qas": [{"question": f"Which river has town {n}?", "answers": [{"text": f"river {n * 7}"}]}],
        }
        for n in range(40)
    ]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    make = ctx.squad_pool(file)
    question = ctx.ruler_cases(setup, [256], 1, ["qa_1"], make)[0].build()
    assert question.expected[0] in question.prompt
    with pytest.raises(BadRequestError, match="too few"):
        ctx.ruler_cases(setup, [4096], 1, ["qa_1"], make)[0].build()
    with pytest.raises(BadRequestError, match="too few"):
        ctx.lost_in_the_middle_cases(setup, positions=[1], samples=1, num_documents=50, make=make)[0].build()
    file.write_text("[]")
    with pytest.raises(BadRequestError, match="SQuAD"):
        ctx.squad_pool(file)
