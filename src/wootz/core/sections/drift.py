"""``[drift]``: a part of the answers is graded, so that a model that gets worse in silence is noticed.

When it is an alarm says the alert rule ``quality-drift`` (``[alerts] file`` changes it).
"""

from __future__ import annotations

from pydantic import Field

from wootz.core.sections.section import Section


class DriftConfig(Section):
    share: float = Field(default=0.0, ge=0, le=1, description="Part of the answers that is graded; 0.01 is usual.")
    grader: str = Field(
        default="rules",
        description='"rules" costs nothing and sees little; else the name of a model that reads question and answer.',
    )
