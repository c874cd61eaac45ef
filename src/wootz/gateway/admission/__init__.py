"""Who gets a model's next place when there are not enough for all; see `wootz.gateway.admission.queue`."""

from __future__ import annotations

from wootz.gateway.admission.admission import Admission

__all__ = ["Admission"]
