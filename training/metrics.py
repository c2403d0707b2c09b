"""Figures of merit from arrays, each with a 95 % interval over patients.

A statistic takes weights [resamples, n], how often each reading was drawn, and returns a value a
resample; the figure itself is the statistic at weights of one. Scores are sorted once and only their
weights change, so that 2,000 resamples of 5,000 readings take seconds.

Throughout: ``score`` float64 [n], the probability of any label but the negative one; ``truth`` bool
[n], whether the label is another than the negative one; ``patients`` [n], whose reading it is;
``called`` bool [n], whether it was decided positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Names = NDArray[np.str_]
Statistic = Callable[[Floats], dict[str, Floats]]

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 1
WEIGHTS_AT_ONCE = 1_000_000
"""Weights held in memory together: 8 MB."""
SMALLEST_PROBABILITY = 1e-7
"""Probabilities are clipped to this before their logarithm: float32 knows none closer to 1."""
BINS = 10
BINNING = f"{BINS} bins of equal width over the probability of any label but the negative one"
CURVE_POINTS = 200
ONE_CLASS = "one class only: no AUC can be given"


def intervals(statistic: Statistic, patients: Names) -> dict[str, dict[str, float]]:
    """A statistic's values with percentile bootstrap intervals, patients drawn with replacement.

    A patient's readings are drawn together, so copies of them narrow nothing. Resamples in which a
    value is undefined are passed over; a value that is undefined itself is left out.
    """
    values = statistic(np.ones((1, len(patients))))
    defined = [name for name, value in values.items() if np.isfinite(value[0])]
    drawn = [statistic(weights) for weights in resampled_weights(patients)]
    tail = 50 * (1 - CONFIDENCE)
    found = {}
    for name in defined:
        low, high = np.nanpercentile(np.concatenate([of[name] for of in drawn]), [tail, 100 - tail])
        found[name] = {"value": _rounded(values[name][0]), "low": _rounded(low), "high": _rounded(high)}
    return found


def resampled_weights(patients: Names) -> Iterator[Floats]:
    """How often each reading is drawn, RESAMPLES rows in all: float64 [some rows, n] at a time."""
    _, member = np.unique(patients, return_inverse=True)
    count = int(member.max()) + 1
    random = np.random.default_rng(SEED)
    rows = max(WEIGHTS_AT_ONCE // len(patients), 1)
    for start in range(0, RESAMPLES, rows):
        some = min(rows, RESAMPLES - start)
        drawn = random.integers(count, size=(some, count)) + count * np.arange(some)[:, None]
        times = np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count)
        yield times[:, member].astype(np.float64)


def together(*statistics: Statistic) -> Statistic:
    """Several statistics as one, so that they share their resamples."""

    def of(weights: Floats) -> dict[str, Floats]:
        return {name: value for one in statistics for name, value in one(weights).items()}

    return of


def ranking(score: Floats, truth: Flags) -> Statistic:
    """``roc_auc``, ties counting half, and ``pr_auc``: average precision, as scikit-learn has it."""
    sweep = _Sweep(score, truth)

    def of(weights: Floats) -> dict[str, Floats]:
        tp, fp = sweep.cumulated(weights)
        positives, negatives = np.diff(tp, axis=1, prepend=0), np.diff(fp, axis=1, prepend=0)
        outranked = (positives * (fp[:, -1:] - fp + negatives / 2)).sum(axis=1)
        precision = np.nan_to_num(_share(tp, tp + fp))
        return {
            "roc_auc": _share(outranked, tp[:, -1] * fp[:, -1]),
            "pr_auc": _share((positives * precision).sum(axis=1), tp[:, -1]),
        }

    return of


def at_sensitivity(score: Floats, truth: Flags, target: float) -> Statistic:
    """The largest threshold whose sensitivity reaches ``target``, found anew in every resample, and
    ``sensitivity``, ``specificity``, ``ppv``, ``npv`` at it."""
    sweep = _Sweep(score, truth)

    def of(weights: Floats) -> dict[str, Floats]:
        tp, fp = sweep.cumulated(weights)
        at = np.argmax(tp >= target * tp[:, -1:] - 1e-9, axis=1)
        row = np.arange(len(weights))
        reached = tp[row, at], tp[:, -1] - tp[row, at], fp[row, at], fp[:, -1] - fp[row, at]
        figures = _rates(*reached)
        kept = {name: figures[name] for name in ("sensitivity", "specificity", "ppv", "npv")}
        return {"threshold": np.where(tp[:, -1] > 0, sweep.thresholds[at], np.nan), **kept}

    return of


class _Sweep:
    """Scores in falling order, equal ones as one step: what a falling threshold takes in."""

    def __init__(self, score: Floats, truth: Flags) -> None:
        self._order = np.argsort(-score, kind="stable")
        falling = score[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], falling[1:] != falling[:-1]]))
        self._truth = truth[self._order]
        self.thresholds: Floats = falling[self._starts]

    def cumulated(self, weights: Floats) -> tuple[Floats, Floats]:
        """True and false positives at each threshold: float64 [resamples, thresholds]."""
        sorted_weights = weights[:, self._order]
        tp = np.add.reduceat(sorted_weights * self._truth, self._starts, axis=1)
        fp = np.add.reduceat(sorted_weights * ~self._truth, self._starts, axis=1)
        return tp.cumsum(axis=1), fp.cumsum(axis=1)


def decisions(called: Flags, truth: Flags, counted: Flags | None = None) -> Statistic:
    """Sensitivity, specificity and their kin; ``counted`` bool [n]: those decided at all."""
    cells = np.stack([truth & called, truth & ~called, ~truth & called, ~truth & ~called], axis=1)
    columns = (cells if counted is None else cells & counted[:, None]).astype(np.float64)

    def of(weights: Floats) -> dict[str, Floats]:
        tp, fn, fp, tn = (weights @ columns).T
        return _rates(tp, fn, fp, tn)

    return of


def _rates(tp: Floats, fn: Floats, fp: Floats, tn: Floats) -> dict[str, Floats]:
    sensitivity, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "accuracy": _share(tp + tn, tp + fn + fp + tn),
        "ppv": _share(tp, tp + fp),
        "npv": _share(tn, tn + fn),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
    }


def probabilistic(score: Floats, truth: Flags) -> Statistic:
    """``loss``: mean negative logarithm of the truth's probability. ``calibration_error``: expected
    calibration error over BINNING (Guo 2017, arXiv 1706.04599)."""
    said = np.clip(np.where(truth, score, 1 - score), SMALLEST_PROBABILITY, 1)
    inside = np.eye(BINS)[_bin(score)]
    columns = np.column_stack([-np.log(said), inside * (score - truth)[:, None]])

    def of(weights: Floats) -> dict[str, Floats]:
        means = (weights @ columns) / weights.sum(axis=1, keepdims=True)
        return {"loss": means[:, 0], "calibration_error": np.abs(means[:, 1:]).sum(axis=1)}

    return of


def abstention(score: Floats, truth: Flags, threshold: float, shown: Flags, called: Flags) -> Statistic:
    """What abstaining buys. ``shown`` bool [n]: those that were given a label.

    ``abstained``: share not given one. ``forced_error``: share wrong when everything is decided at
    the threshold; ``error_on_rest``: share wrong of those shown; ``error_ratio``: the second over
    the first.
    """
    columns = np.stack([shown, shown & (called != truth), (score >= threshold) != truth], axis=1)

    def of(weights: Floats) -> dict[str, Floats]:
        kept, wrong, forced = (weights @ columns.astype(np.float64)).T
        total = weights.sum(axis=1)
        rest, everything = _share(wrong, kept), _share(forced, total)
        return {
            "abstained": 1 - kept / total,
            "forced_error": everything,
            "error_on_rest": rest,
            "error_ratio": _share(rest, everything),
        }

    return of


def labelled(p: Floats, truth: NDArray[np.intp], chosen: NDArray[np.intp]) -> Statistic:
    """Figures over all labels. ``p`` [n, labels]; ``truth``, ``chosen``: indices of labels [n].

    ``loss``, ``accuracy``, ``balanced_accuracy`` (mean of the sensitivities of labels that occur), ``kappa``
    (Cohen's, quadratic weights, labels in the task's order) and ``sensitivity <i>``,
    ``roc_auc <i>`` of label i against the rest.
    """
    count = p.shape[1]
    said = np.clip(p[np.arange(len(p)), truth], SMALLEST_PROBABILITY, 1)
    columns = np.column_stack([-np.log(said), np.eye(count * count)[truth * count + chosen]])
    against_rest = [ranking(p[:, i], truth == i) for i in range(count)]
    apart = np.subtract.outer(np.arange(count), np.arange(count)) ** 2
    present = np.unique(truth)

    def of(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(axis=1)
        sums = weights @ columns
        confusion = sums[:, 1:].reshape(-1, count, count)
        true, said_so = confusion.sum(axis=2), confusion.sum(axis=1)
        right = np.diagonal(confusion, axis1=1, axis2=2)
        expected = np.einsum("ri,rj,ij->r", true, said_so, apart) / total
        sensitivities = _share(right, true)
        return {
            "loss": sums[:, 0] / total,
            "accuracy": right.sum(axis=1) / total,
            "balanced_accuracy": sensitivities[:, present].mean(axis=1),
            "kappa": 1 - _share(np.einsum("rij,ij->r", confusion, apart), expected),
            **{f"sensitivity {i}": sensitivities[:, i] for i in range(count)},
            **{f"roc_auc {i}": rank(weights)["roc_auc"] for i, rank in enumerate(against_rest)},
        }

    return of


def binary_figures(score: Floats, truth: Flags, patients: Names, threshold: float) -> dict[str, Any]:
    """All figures of the negative label against the rest, ``forced`` being those decided at the
    threshold; of one class only, its counts and sensitivity or specificity."""
    counts = {
        "positive": int(truth.sum()),
        "negative": int((~truth).sum()),
        "positive_patients": len(set(patients[truth])),
        "negative_patients": len(set(patients[~truth])),
    }
    if not len(truth):
        return {**counts, "note": "nothing was read"}
    called = score >= threshold
    if truth.all() or not truth.any():
        name = "sensitivity" if truth.all() else "specificity"
        return {
            **counts,
            "note": ONE_CLASS,
            "forced": {name: intervals(decisions(called, truth), patients)[name]},
        }
    forced = decisions(called, truth)
    ranked = together(ranking(score, truth), probabilistic(score, truth))
    return {
        **counts,
        **intervals(ranked, patients),
        "forced": {**intervals(forced, patients), "confusion": confusion(called, truth)},
    }


def confusion(called: Flags, truth: Flags) -> dict[str, int]:
    """Counts of right and wrong decisions."""
    return {
        "true_positive": int((truth & called).sum()),
        "false_negative": int((truth & ~called).sum()),
        "false_positive": int((~truth & called).sum()),
        "true_negative": int((~truth & ~called).sum()),
    }


def label_figures(
    p: Floats, truth: NDArray[np.intp], chosen: NDArray[np.intp], patients: Names, labels: Sequence[str]
) -> dict[str, Any]:
    """``labelled`` with intervals, a part a label, and the confusion matrix: rows are the truth."""
    found = intervals(labelled(p, truth, chosen), patients)
    names = ("loss", "accuracy", "balanced_accuracy", "kappa")
    matrix = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix, (truth, chosen), 1)
    return {
        **_part(found, {name: name for name in names}),
        "confusion": matrix.tolist(),
        "by_label": {
            label: {
                "samples": int((truth == i).sum()),
                **_part(found, {f"sensitivity {i}": "sensitivity", f"roc_auc {i}": "roc_auc"}),
            }
            for i, label in enumerate(labels)
        },
    }


def _part(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {new: found[old] for old, new in names.items() if old in found}


def reliability(score: Floats, truth: Flags) -> list[dict[str, float]]:
    """The filled bins of BINNING: readings, mean probability, share that is positive."""
    within = _bin(score)
    return [
        {
            "readings": int((within == i).sum()),
            "probability": _rounded(score[within == i].mean()),
            "positive": _rounded(truth[within == i].mean()),
        }
        for i in np.unique(within)
    ]


def risk_coverage(score: Floats, truth: Flags, threshold: float) -> list[dict[str, float]]:
    """Error among those that are decided, as the confidence |score - threshold| that is asked for
    falls from the largest to 0 and the coverage rises to 1: up to CURVE_POINTS points (El-Yaniv
    and Wiener 2010, jmlr.org/papers/v11/el-yaniv10a.html)."""
    confidence = np.abs(score - threshold)
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(((score >= threshold) != truth)[order])
    falling = confidence[order]
    last = np.flatnonzero(np.concatenate([falling[1:] != falling[:-1], [True]]))
    chosen = np.unique(np.linspace(0, len(last) - 1, min(CURVE_POINTS, len(last))).round().astype(int))
    return [
        {
            "cutoff": _rounded(falling[i]),
            "coverage": _rounded((i + 1) / len(score)),
            "error": _rounded(wrong[i] / (i + 1)),
        }
        for i in last[chosen]
    ]


def _bin(score: Floats) -> NDArray[np.intp]:
    return np.clip((score * BINS).astype(np.intp), 0, BINS - 1)


def _share(part: Floats, whole: Floats) -> Floats:
    """Their ratio, not a number where the whole is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _rounded(value: float) -> float:
    return round(float(value), 4)
