"""The anneal study in miniature: its runs differ in their last part only, and there by what they say."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from wootz.training.studies.anneal import (
    AS_BEFORE,
    BOTH,
    DECAYED,
    GOOD_SOURCE,
    SPREAD,
    VARIANTS,
    anneal_studies,
    mixed_rows,
)
from wootz.training.studies.positions import Size
from wootz.training.studies.study import run_study

TINY = Size(width=16, layers=1, heads=2, length=16, batch_size=8, steps=24)


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "general.txt").write_bytes(b"abcdefgh" * 15_000)
    (tmp_path / "good.txt").write_bytes(b"stuvwxyz" * 15_000)
    return {"text": tmp_path / "general.txt", "good_text": tmp_path / "good.txt"}


def test_a_larger_share_changes_rows_of_the_other_text_only() -> None:
    general, good = torch.zeros(1000).long(), torch.ones(1000).long()
    few, many = (
        torch.cat([batch.tokens_BT for batch in islice(mixed_rows(general, good, share, 8, 10, seed=0), 200)])
        for share in (0.1, 0.5)
    )
    assert few.float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert many.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (few <= many).all()
    assert set(few.float().mean(1).tolist()) == {0.0, 1.0}  # no row is of both


def test_where_it_is_branched_off_is_nothing_to_a_run_that_does_not_change(texts: dict[str, Path]) -> None:
    late, early = (anneal_studies(size=TINY, last=last, every=6, **texts)[1].run(AS_BEFORE, 0) for last in (0.25, 0.5))
    assert list(late) == ["6", "12", "18", "24"]
    assert late == early


def test_the_last_part_reads_and_decays_as_it_is_called(tmp_path: Path, texts: dict[str, Path]) -> None:
    good, general = anneal_studies(size=TINY, last=0.5, share=0.05, late_share=0.9, every=6, **texts)
    report = run_study(good, tmp_path / "good", range(1))["curves"]
    others = run_study(general, tmp_path / "general", range(1))["curves"]
    assert set(report) == set(others) == set(VARIANTS)
    known = {variant: curve["24"]["mean"] for variant, curve in report.items()}
    assert len({curve["12"]["mean"] for variant, curve in report.items() if variant != SPREAD}) == 1
    assert max(known[BOTH], known[GOOD_SOURCE]) < min(known[DECAYED], known[AS_BEFORE])
    assert report[SPREAD]["12"]["mean"] < report[BOTH]["12"]["mean"]  # it has seen more of it by then
    assert others[DECAYED]["24"]["mean"] < others[BOTH]["24"]["mean"]
    assert len(set(known.values())) == len(VARIANTS)
