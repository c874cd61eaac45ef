"""Evaluation: what a model can really do, measured against any `LanguageModel`.

    from wootz.evals import long_context

Runs are kept row by row (`Journal`), so a killed one goes on where it stopped; every score comes with its interval.
"""

from wootz.evals.asking import Reply, ask
from wootz.evals.journal import Journal
from wootz.evals.statistics import sign_test, wilson_interval

__all__ = ["Journal", "Reply", "ask", "sign_test", "wilson_interval"]
