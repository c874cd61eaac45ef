"""The warmup study in miniature: it measures what it says, and is taken up where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from wootz.training.studies import warmup
from wootz.training.studies.positions import Size
from wootz.training.studies.study import run_study
from wootz.training.studies.warmup import STILL, warmup_study

TINY = Size(width=16, layers=1, heads=2, length=16, batch_size=4, steps=6)


def test_sharpness_falls_as_second_moments_settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = warmup_study(size=TINY, learning_rate=0.01, warmup=0.5)
    report = run_study(study, tmp_path, range(1))
    assert list(report["curves"][STILL]) == ["1", "2", "4", "6"]
    still = [point["mean"] for point in report["curves"][STILL].values()]
    assert still[0] > 2 * still[-1] > 0
    bits = {note["variant"]: note["bits per byte"] for note in report["notes"]}
    assert bits["no warmup"] < bits["warmup over 50%"] < bits[STILL]  # six steps: the larger rate has learned more
    monkeypatch.setattr(warmup, "learn", None)  # all is there already
    assert run_study(warmup_study(size=TINY, learning_rate=0.01, warmup=0.5), tmp_path, range(1)) == report
