"""Where things stand in a long prompt. Models read its two ends best (Liu et al. 2023, "Lost in the Middle").

So: the question at the end, the most relevant documents at the edges, and what a calculation needs right beside the
question. Whether that helps *your* model is measured, not assumed: `wootz eval needle --question-at end,start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from wootz.evals.long_context.case import QuestionAt

Document = TypeVar("Document")


def lay_out(
    text: str,
    question: str,
    *,
    question_at: QuestionAt = "end",
    instruction: str = "",
    near_question: Sequence[str] = (),
) -> str:
    """One prompt: instruction, long text and question, with blank lines between.

    ``near_question`` are passages to repeat beside the question, such as the numbers that it asks to add up; with the
    question at both ends they stand beside the last one.
    """
    inputs = "\n".join(near_question)
    asked = f"{inputs}\n\n{question}" if inputs else question
    parts = {
        "end": (instruction, text, asked),
        "start": (instruction, asked, text),
        "both": (instruction, question, text, asked),
    }[question_at]
    return "\n\n".join(part for part in parts if part)


def to_the_edges(best_first: Sequence[Document]) -> list[Document]:
    """Reorder retrieved documents so that the most relevant stand first and last, the least relevant in the middle.

    >>> to_the_edges([1, 2, 3, 4, 5])
    [1, 3, 5, 4, 2]
    """
    return [*best_first[::2], *best_first[1::2][::-1]]
