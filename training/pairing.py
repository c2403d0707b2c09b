"""Is one network better than another? Both read the same clips, so their difference is tested in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reader.bundle import Specification
from training.evaluation import Prediction, clip_scores
from training.metrics import Flags, Floats, Names, Statistic, intervals, ranking

FEWEST_PATIENTS = 20
"""Patients on each side of the question under which nothing is concluded."""
MARGIN = 0.02
"""AUC that is worth a change of networks; a smaller gain is a reason to keep."""
REPLACE, KEEP, TOO_FEW = "replace", "keep", "too few to tell"


def paired_difference(first: Floats, second: Floats, truth: Flags, patients: Names) -> dict[str, float]:
    """AUC of ``second`` minus that of ``first`` on the same clips, float64 [n] scores each, with a 95 %
    percentile interval over patients drawn with replacement, both networks on the same draw."""

    def difference(a: Statistic, b: Statistic) -> Statistic:
        return lambda weights: {"difference": b(weights)["roc_auc"] - a(weights)["roc_auc"]}

    of = difference(ranking(first, truth), ranking(second, truth))
    return intervals(of, patients)["difference"]


def judge(old: Sequence[Prediction], new: Sequence[Prediction], reads: Specification) -> dict[str, Any]:
    """Whether NEW should replace OLD, from their predictions of the same samples in the same order.

    ``replace`` where the whole interval of the difference lies above 0; ``keep`` where it lies below
    ``MARGIN``; else, or with fewer than ``FEWEST_PATIENTS`` positive or negative patients, ``too few to
    tell``. Clips that either could not read are left out and counted.
    """
    both = [(a, b) for a, b in zip(old, new, strict=True) if a.p is not None and b.p is not None]
    first, second = (clip_scores([pair[i] for pair in both], reads) for i in (0, 1))
    counts = {
        "clips": len(both),
        "without_reading": len(old) - len(both),
        "positive_patients": len(set(first.patients[first.truth])),
        "negative_patients": len(set(first.patients[~first.truth])),
        "rule": f"replace: interval above 0; keep: below {MARGIN}; at least {FEWEST_PATIENTS} patients each",
    }
    if not first.truth.any() or first.truth.all():
        return {**counts, "verdict": TOO_FEW}
    difference = paired_difference(first.score, second.score, first.truth, first.patients)
    return {**counts, "difference": difference, "verdict": _verdict(difference, counts)}


def _verdict(difference: dict[str, float], counts: dict[str, Any]) -> str:
    if min(counts["positive_patients"], counts["negative_patients"]) < FEWEST_PATIENTS:
        return TOO_FEW
    if difference["low"] > 0:
        return REPLACE
    return KEEP if difference["high"] < MARGIN else TOO_FEW


def clearly_worse(difference: dict[str, float]) -> bool:
    """Whether a difference to the best network excludes that it is as good."""
    return bool(np.isfinite(difference["high"]) and difference["high"] < 0)
