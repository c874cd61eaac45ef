"""Leaks of eval sets: all that are planted are found, however they are dressed up, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from wootz.data.decontamination import Decontaminator, Found, Leak

LOT = random.Random(0)
VOCABULARY = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("n", "r", "st", "la", "mo", "tik")]


def sentence(num_words: int) -> str:
    return " ".join(LOT.choice(VOCABULARY) for _ in range(num_words))


DRESS = {
    "as it is": lambda text: text,
    "case": str.upper,
    "punctuation": lambda text: text.replace(" ", ", ") + "!",
    "line breaks": lambda text: text.replace(" ", "\n  "),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in text),
    "markup": lambda text: f"*{text.replace(' ', '* _')}_",
}


@pytest.mark.parametrize("dress", DRESS)
def test_planted_leaks_are_all_found_and_no_others(dress: str) -> None:
    items = [[sentence(LOT.randint(8, 60)), sentence(LOT.randint(8, 20))] for _ in range(120)]
    clean, planted = [sentence(200) for _ in range(100)], []
    for number, item in enumerate(items):
        field = LOT.choice(item)
        words = field.split()
        if len(words) > 13:
            start = LOT.randint(0, len(words) - 13)
            words = words[start : start + 13]
        planted.append((number, f"{sentence(30)} {DRESS[dress](' '.join(words))} {sentence(30)}"))
    finder = Decontaminator({"exam": items})
    leaks = finder.leaks([*clean, *(text for _, text in planted)])
    assert not any(leaks[: len(clean)])
    assert leaks[len(clean) :] == [[Leak("exam", number)] for number, _ in planted]


def test_twelve_words_of_a_long_item_are_no_leak() -> None:
    words = sentence(40).split()
    finder = Decontaminator({"exam": [[" ".join(words)]]})
    assert finder.leaks([" ".join([*words[5:17], "and", *words[18:30]]), " ".join(words[5:18])]) == [
        [],
        [Leak("exam", 0)],
    ]
    assert Decontaminator({"exam": [[" ".join(words)]]}, ngram=12).leaks([" ".join(words[5:17])]) == [[Leak("exam", 0)]]


def test_the_report_says_what_was_searched_and_found() -> None:
    exam = [[sentence(20)], [sentence(9)], [sentence(3)], ["yes", "no"]]
    quiz = [[sentence(15)]]
    finder = Decontaminator({"exam": exam, "quiz": quiz})
    texts = [f"x {exam[0][0]} y", f"again {exam[0][0]}, and {quiz[0][0]}", sentence(50), exam[2][0]]
    assert finder.report(iter(finder.leaks(texts))) == {"exam": Found(4, 2, 1, 2), "quiz": Found(1, 1, 1, 1)}


def test_eval_sets_are_read_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "choice.csv").write_text(f"question,A,B,answer\n{sentence(20)},{sentence(3)},{sentence(9)},1\n")
    rows = [{"question": sentence(20), "options": {"text": [sentence(14)]}, "n": 4}, {"question": sentence(2)}]
    (tmp_path / "open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    finder = Decontaminator.against([tmp_path])
    assert finder.num_items == {"open": 2, "sub/choice": 1}
    assert finder.num_searchable == {"open": 1, "sub/choice": 1}
    assert finder.leaks([rows[0]["options"]["text"][0]]) == [[Leak("open", 0)]]


@pytest.mark.real
def test_real_eval_sets_are_found_in_a_real_corpus(shared_data: Path) -> None:
    """GSM8K's questions, planted between documents of C4."""
    from wootz.data.documents import Source, read_documents

    documents = [
        d.text for d in read_documents(Source(name="c4", path=str(shared_data / "llamafactory/c4_demo.jsonl")))
    ]
    finder = Decontaminator.against([shared_data / "gsm8k" / "test.jsonl"])
    rows = [json.loads(line) for line in (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()[:300]]
    mixed = [f"{text}\n{row['question'].lower()}" for text, row in zip(documents, rows, strict=False)]
    assert not any(finder.leaks(documents))
    assert all(Leak("test", n) in found for n, found in enumerate(finder.leaks(mixed)))
