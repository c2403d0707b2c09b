"""What the gate says of counts, against the binomial distribution itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy.stats import binom

from convert.gate import FAIL, PASS, TOO_FEW, Evidence, Limits, judge, patients_needed, upper_end

GOOD = Evidence(
    positive_patients=149,
    lost=0,
    clips=400,
    flipped=0,
    peak_cells=0.0,
    shipped_clips=400,
    shipped_flipped=0,
)


def test_149_positive_patients_are_enough_and_148_too_few() -> None:
    assert judge(GOOD)["outcome"] == PASS
    found = judge(replace(GOOD, positive_patients=148))
    assert found["outcome"] == TOO_FEW
    assert found["needed"] == 149


@pytest.mark.parametrize("total", [1, 20, 149, 1000])
def test_nothing_lost_has_the_closed_form(total: int) -> None:
    assert upper_end(0, total, 0.95) == pytest.approx(1 - 0.05 ** (1 / total), rel=1e-9)


@pytest.mark.parametrize(("lost", "total"), [(1, 30), (3, 70), (7, 149), (29, 30)])
def test_the_upper_end_is_where_so_few_would_be_rare(lost: int, total: int) -> None:
    assert binom.cdf(lost, total, upper_end(lost, total, 0.95)) == pytest.approx(0.05, rel=1e-6)


def test_the_upper_end_is_one_where_everything_or_nothing_was_seen() -> None:
    assert upper_end(5, 5, 0.95) == 1.0
    assert upper_end(0, 0, 0.95) == 1.0


@pytest.mark.parametrize("lost", [0, 1, 2, 5])
def test_patients_needed_is_the_fewest_that_show_it(lost: int) -> None:
    needed = patients_needed(lost, Limits())
    assert binom.cdf(lost, needed, 0.02) <= 0.05 < binom.cdf(lost, needed - 1, 0.02)
    shown = replace(GOOD, positive_patients=needed, lost=lost, clips=2 * needed, shipped_clips=2 * needed)
    assert judge(shown)["outcome"] == PASS
    assert judge(replace(shown, positive_patients=needed - 1))["outcome"] == TOO_FEW


def test_a_single_clip_or_patient_is_never_a_failure() -> None:
    few = Evidence(6, 1, 12, 1, 0.0, 12, 1)
    assert 1 / few.clips > Limits().flips
    assert judge(few)["outcome"] == TOO_FEW
    assert judge(replace(few, flipped=2))["outcome"] == FAIL
    assert judge(replace(few, shipped_flipped=2))["outcome"] == FAIL


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"positive_patients": 70, "lost": 3}, "3 of 70 positive patients are missed (4.3%; 2% allowed)"),
        ({"flipped": 5}, "5 of 400 clips get another verdict (1.2%; 1% allowed)"),
        ({"shipped_flipped": 9}, "9 of 400 clips get another verdict from the shipped network"),
        ({"peak_cells": 2.0}, "moves by 2 cells on median (1 allowed)"),
    ],
)
def test_more_than_a_limit_fails_whatever_else_is_fine(changed: dict[str, float], words: str) -> None:
    found = judge(replace(GOOD, **changed))  # type: ignore[arg-type]
    assert found["outcome"] == FAIL
    assert words in found["sentence"]


def test_a_share_that_just_reaches_its_limit_is_no_failure() -> None:
    assert judge(replace(GOOD, flipped=4, peak_cells=1.0))["outcome"] == PASS
    for total in range(100, 5000, 50):
        just = replace(GOOD, positive_patients=total, lost=total // 50, clips=total, flipped=total // 100)
        assert judge(just)["outcome"] != FAIL, total


def test_every_failure_is_named() -> None:
    sentence = judge(replace(GOOD, lost=9, flipped=40, peak_cells=3.0))["sentence"]
    assert all(words in sentence for words in ("9 of 149", "40 of 400", "3 cells"))


def test_sentences_name_the_numbers() -> None:
    passed = judge(GOOD)
    assert "of 149 positive patients" in passed["sentence"]
    assert "0 of 400 clips" in passed["sentence"]
    assert "at most 2.0 points (95% sure)" in passed["sentence"]
    few = judge(replace(GOOD, positive_patients=60, lost=1))
    assert few["sensitivity_loss_upper"] == pytest.approx(upper_end(1, 60, 0.95), abs=1e-4)
    assert "missed 1 that float found" in few["sentence"]
    assert f"{few['needed']} positive patients of whom no further one is missed" in few["sentence"]
    assert few["evidence"]["positive_patients"] == 60
    assert few["limits"]["sensitivity_loss"] == 0.02


def test_without_positive_patients_nothing_is_shown() -> None:
    found = judge(Evidence(0, 0, 0, 0, None, 240, 0))
    assert found["outcome"] == TOO_FEW
    assert found["sensitivity_loss_upper"] == 1.0
    assert judge(Evidence(0, 0, 0, 0, None, 240, 3))["outcome"] == FAIL


def test_other_limits_are_kept_to() -> None:
    strict = Limits(sensitivity_loss=0.01, confidence=0.99)
    assert judge(GOOD, strict)["outcome"] == TOO_FEW
    assert judge(GOOD, strict)["needed"] == math.ceil(math.log(0.01) / math.log(0.99))


def test_a_moved_probability_fails_though_no_verdict_flips() -> None:
    assert judge(replace(GOOD, difference_of_p=0.04))["outcome"] == PASS
    for name in ("difference_of_p", "shipped_difference_of_p"):
        found = judge(replace(GOOD, **{name: 0.06}))
        assert found["outcome"] == FAIL
        assert "0.06" in found["sentence"]


def test_a_broken_layer_fails_and_is_named() -> None:
    assert judge(replace(GOOD, worst_layer="stem", worst_layer_lost_db=11.9))["outcome"] == PASS
    found = judge(replace(GOOD, worst_layer="stem", worst_layer_lost_db=18.0))
    assert found["outcome"] == FAIL
    assert "stem" in found["sentence"]
