"""Run cases against a model: as many at a time as asked for, each row kept the moment it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from wootz.core import (
    SILENT,
    BadRequestError,
    LanguageModel,
    PayloadTooLargeError,
    Progress,
    UnsupportedError,
    WootzError,
)
from wootz.evals.asking import ask
from wootz.evals.journal import Journal
from wootz.evals.long_context.case import Case, Row

TOO_LONG = ("context_length", "maximum context", "context window", "too long", "max_model_len", "too many tokens")
"""How endpoints say that a prompt is more than they read, where they give no proper code."""


async def evaluate(
    model: LanguageModel,
    cases: Sequence[Case],
    journal: Journal,
    *,
    concurrency: int = 1,
    chat: bool = True,
    progress: Progress = SILENT,
) -> list[Row]:
    """Ask every case that the journal lacks, and return the rows of all, in the order of the cases.

    A prompt that the endpoint refuses as too long is a failed row; every other failure ends the run, and what is done
    stays done. Prompts are built in a thread, so that timing an answer does not wait for the tokenizing of the next.
    """
    todo = [case for case in cases if case.id not in journal.rows]
    progress.set_total(len(cases), len(cases) - len(todo))
    waiting: Iterator[Case] = iter(todo)

    async def worker() -> None:
        for case in waiting:
            row = await _row(model, case, chat)
            journal.append(asdict(row))
            progress.advance()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(todo))):
                group.create_task(worker())
    except* WootzError as errors:
        raise errors.exceptions[0] from None
    return [Row.from_json(journal.rows[case.id]) for case in cases]


async def _row(model: LanguageModel, case: Case, chat: bool) -> Row:
    question = await asyncio.to_thread(case.build)
    about = {
        "id": case.id, "task": case.task, "length": case.length, "sample": case.sample, "depth": case.depth,
        "question_at": case.question_at, "expected": question.expected,
    }  # fmt: skip
    try:
        reply = await ask(model, question.prompt, max_tokens=question.max_tokens, chat=chat)
    except (BadRequestError, PayloadTooLargeError) as error:
        if not _is_too_long(error):
            raise
        return Row(**about, score=0.0, answer="", refused=str(error))
    return Row(
        **about,
        score=question.grade(reply.text, question.expected),
        answer=reply.text,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cached_tokens=reply.cached_tokens,
        time_to_first_token=reply.time_to_first_token,
        seconds=reply.seconds,
    )


def _is_too_long(error: WootzError) -> bool:
    if isinstance(error, PayloadTooLargeError):
        return True
    return not isinstance(error, UnsupportedError) and any(
        sign in f"{error.code} {error.message}".casefold() for sign in TOO_LONG
    )
