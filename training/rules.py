"""The verdict rule: temperature, window, threshold and abstain band, from patients not fitted on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from reader.bundle import Specification
from reader.preprocess import cell_weights
from reader.verdict import VerdictRule, pool
from training.datasets import DataError, Task
from training.evaluation import predict
from training.views import ClipViews

Float = NDArray[np.float32]

ABSTAIN_SHARE = 0.12
"""Share of clips nearest to the threshold on which the rule abstains."""
CLEARLY_BETTER = 0.005
"""AUC by which a later candidate of window and kind must beat an earlier one to be taken."""


def choose_rule(
    clips: Sequence[ClipViews],
    reads: Specification,
    maps: Sequence[Float],
    task: Task,
    sensitivity: float | None = None,
) -> tuple[Specification, list[dict[str, Any]]]:
    """Temperature, verdict rule and abstain band from clips that the networks were not fitted on.

    The temperature has the least log loss over frames. Among the task's windows and kinds, the first
    with the highest AUC (by ``CLEARLY_BETTER``) is taken. The threshold is the highest that finds the
    share ``sensitivity`` of the positive clips; without one, where sensitivity and specificity meet. The
    band holds the ``ABSTAIN_SHARE`` of clips nearest to the threshold. Returns the specification and
    a row a candidate. Raises DataError where no clip of some class has a reading.
    """
    reads = dataclasses.replace(reads, temperature=fit_temperature(clips, reads, maps))
    candidates = []
    for window in task.clip.windows:
        for over in task.clip.over:
            rule = dataclasses.replace(reads.verdict, window=window, over=over)
            score, truth = _scores(clips, dataclasses.replace(reads, verdict=rule), maps)
            candidates.append((rule, score, truth, float(roc_auc_score(truth, score))))
    rule, score, truth, best = candidates[0]
    for other in candidates[1:]:
        if other[3] > best + CLEARLY_BETTER:
            rule, score, truth, best = other
    threshold = choose_threshold(score, truth, sensitivity)
    reach = float(np.quantile(np.abs(score - threshold), ABSTAIN_SHARE))
    rule = dataclasses.replace(
        rule,
        threshold=threshold,
        normal_below=round(max(threshold - reach, 0.0), 4),
        abnormal_from=round(min(threshold + reach, 1.0), 4),
    )
    tried = [{"window": r.window, "over": r.over, "auc": round(auc, 4)} for r, _, _, auc in candidates]
    return dataclasses.replace(reads, verdict=rule), tried


def _scores(
    clips: Sequence[ClipViews], reads: Specification, maps: Sequence[Float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    read = [item for item in predict(clips, reads, maps) if item.p is not None]
    negative = reads.labels.index(reads.negative)
    score = np.array([1 - float(item.p[negative]) for item in read if item.p is not None])
    truth = np.array([item.sample.label != reads.negative for item in read], bool)
    if truth.all() or not truth.any():
        raise DataError("held-out clips with a reading are of one class only: no threshold can be chosen")
    return score, truth


def choose_threshold(
    score: NDArray[np.float64], truth: NDArray[np.bool_], sensitivity: float | None = None
) -> float:
    """The highest cut that finds the share ``sensitivity``; without one, where sensitivity and specificity
    meet. Midway between neighbouring scores, so that it does not sit on a clip."""
    order = np.unique(score)
    cuts = np.concatenate([[order[0] / 2], (order[1:] + order[:-1]) / 2])
    found = np.array([(score[truth] >= cut).mean() for cut in cuts])
    if sensitivity is not None:
        enough = np.flatnonzero(found >= sensitivity)
        chosen = cuts[enough[-1]]
    else:
        cleared = np.array([(score[~truth] < cut).mean() for cut in cuts])
        chosen = cuts[int(np.argmax(np.minimum(found, cleared)))]
    return round(float(chosen), 4)


def fit_temperature(clips: Sequence[ClipViews], reads: Specification, maps: Sequence[Float]) -> float:
    """The temperature with the smallest log loss over frames, each clip counting alike."""
    gaps, weights = [], []
    for clip, of in zip(clips, maps, strict=True):
        if not len(of):
            continue
        cells = cell_weights(clip.mask(reads.size), *of.shape[1:3])
        logits = np.stack([pool(m, cells) for m in of])
        true = reads.labels.index(clip.sample.label)
        others = np.delete(logits, true, axis=1)
        gaps.append(np.logaddexp.reduce(others, axis=1) - logits[:, true])
        weights.append(np.full(len(of), 1 / len(of)))
    if not gaps:
        raise DataError("no held-out clip has a reading: no verdict rule can be chosen")
    gap, weight = np.concatenate(gaps), np.concatenate(weights)
    grid = np.geomspace(0.25, 8.0, 121)
    losses = [float((np.logaddexp(0, gap / temperature) * weight).sum()) for temperature in grid]
    return round(float(grid[int(np.argmin(losses))]), 3)


def starting_rule(task: Task) -> VerdictRule:
    """The rule before one was chosen: undecided at one half, without a band."""
    return VerdictRule(
        task.clip.windows[0], 0.5, 0.5, 0.5, task.clip.hysteresis, task.clip.hold, task.clip.over[0]
    )
