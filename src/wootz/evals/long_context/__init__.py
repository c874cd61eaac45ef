"""How much of its context a model can use, not just read.

from wootz.evals import Journal, long_context as ctx

setup = ctx.Setup(count=ctx.chat_counter(tokenizer))
cases = ctx.needle_cases(setup, lengths=[1024, 4096], depths=[0, 0.5, 1], samples=3)
with Journal(Path("runs/needle"), {"model": model.name, "seed": 0}) as journal:
    rows = await ctx.evaluate(model, cases, journal, concurrency=4)
print(ctx.effective_length(ctx.by_length(rows)))
"""

from wootz.evals.long_context.case import AS_IT_IS, Case, Question, Row
from wootz.evals.long_context.chain import chain_cases
from wootz.evals.long_context.domain import DomainRow, domain_cases, read_rows
from wootz.evals.long_context.fitting import TokenizerLike, chat_counter, counter_by_probing, plain_counter
from wootz.evals.long_context.haystack import Haystack, essays, from_file, noise
from wootz.evals.long_context.layout import lay_out, to_the_edges
from wootz.evals.long_context.needle import NeedleTask, multi_needle_cases, needle_cases
from wootz.evals.long_context.prefill import PrefillCurve, prefill_cases, prefill_curve
from wootz.evals.long_context.reading import lost_in_the_middle_cases, squad_pool
from wootz.evals.long_context.ruler import ruler_cases, ruler_tasks
from wootz.evals.long_context.run import evaluate
from wootz.evals.long_context.scores import (
    MiddleDip,
    Score,
    WorkingContext,
    by,
    by_length,
    compare_layouts,
    effective_length,
    middle_dip,
    working_context,
)
from wootz.evals.long_context.setup import Setup

__all__ = [
    "AS_IT_IS",
    "Case",
    "DomainRow",
    "Haystack",
    "MiddleDip",
    "NeedleTask",
    "PrefillCurve",
    "Question",
    "Row",
    "Score",
    "Setup",
    "TokenizerLike",
    "WorkingContext",
    "by",
    "by_length",
    "chain_cases",
    "chat_counter",
    "compare_layouts",
    "counter_by_probing",
    "domain_cases",
    "effective_length",
    "essays",
    "evaluate",
    "from_file",
    "lay_out",
    "lost_in_the_middle_cases",
    "middle_dip",
    "multi_needle_cases",
    "needle_cases",
    "noise",
    "plain_counter",
    "prefill_cases",
    "prefill_curve",
    "read_rows",
    "ruler_cases",
    "ruler_tasks",
    "squad_pool",
    "to_the_edges",
    "working_context",
]
