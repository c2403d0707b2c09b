"""What shrinking a network cost, on patients that it was not fitted on: figures in pairs, agreement, gate.

Positive is any label but the negative one. Intervals are 95 % percentile bootstraps over patients, both
networks on the same draw.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from convert.gate import Evidence
from reader.bundle import Specification
from reader.patterns import clip_patterns, pattern_probabilities
from reader.preprocess import cell_weights
from reader.verdict import probabilities
from training.evaluation import (
    FRAMES_NOTE,
    PATIENTS_NOTE,
    Prediction,
    Scores,
    clip_scores,
    frame_scores,
    patient_scores,
    predict,
)
from training.metrics import (
    Flags,
    Floats,
    Statistic,
    binary_figures,
    decisions,
    intervals,
    probabilistic,
    ranking,
    reliability,
    together,
)
from training.rules import fit_temperature
from training.views import ClipViews

Float = NDArray[np.float32]
Maps = Sequence[Float]
"""Class maps a clip: float32 [frames, rows, columns, map channels]."""

LEVELS: dict[str, Callable[[Sequence[Prediction], Specification], Scores]] = {
    "clip": clip_scores,
    "patient": patient_scores,
    "frame": frame_scores,
}
NOTES = {"frame": FRAMES_NOTE, "patient": PATIENTS_NOTE}
PAIRED = ("roc_auc", "pr_auc", "calibration_error", "sensitivity", "specificity")
DISTANCES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
"""Edges of the classes of distance from the threshold, in probability."""


@dataclasses.dataclass(frozen=True)
class Read:
    """The same clips read by the float network and by others: predictions in the clips' order."""

    clips: Sequence[ClipViews]
    maps: Mapping[str, Maps]
    predictions: Mapping[str, Sequence[Prediction]]


FLOAT = "float"
"""The name of the float network among the others."""


def read(clips: Sequence[ClipViews], maps: Mapping[str, Maps], reads: Specification) -> Read:
    """Conclude from every network's maps, under the float network's frozen rule. A clip without a
    reading has none under any of them: what stands in the way is seen before the network."""
    seen = [i for i, clip in enumerate(clips) if clip.pixels]
    chosen = [clips[i] for i in seen]
    kept = {name: [of[i] for i in seen] for name, of in maps.items()}
    return Read(chosen, kept, {name: predict(chosen, reads, of) for name, of in kept.items()})


def compare(of: Read, reads: Specification) -> dict[str, Any]:
    """``figures`` of every network by level; ``paired``: each less float; ``agreement`` with float."""
    levels = {
        level: {name: scores(items, reads) for name, items in of.predictions.items()}
        for level, scores in LEVELS.items()
    }
    threshold = reads.verdict.threshold
    others = [name for name in of.predictions if name != FLOAT]
    return {
        "clips": len(of.clips),
        "patients": len({clip.sample.patient or clip.sample.name for clip in of.clips}),
        "frames": sum(len(maps) for maps in of.maps[FLOAT]),
        "threshold": threshold,
        "notes": NOTES,
        "figures": {
            name: {level: _figures(by[name], threshold) for level, by in levels.items()}
            for name in of.predictions
        },
        "paired": {
            name: {level: _paired(by[FLOAT], by[name], threshold) for level, by in levels.items()}
            for name in others
        },
        "agreement": {
            name: {
                **{level: _agreement(by[FLOAT], by[name], threshold) for level, by in levels.items()},
                "states_changed": _states_changed(of, name),
                "peaks": _peaks(of, reads, name),
            }
            for name in others
        },
    }


def _figures(of: Scores, threshold: float) -> dict[str, Any]:
    return binary_figures(of.score, of.truth, of.patients, threshold)


def _paired(first: Scores, second: Scores, threshold: float) -> dict[str, Any]:
    if first.truth.all() or not first.truth.any():
        return {}
    before, after = _statistic(first, threshold), _statistic(second, threshold)

    def difference(weights: Floats) -> dict[str, Floats]:
        a, b = before(weights), after(weights)
        return {name: b[name] - a[name] for name in PAIRED}

    return intervals(difference, first.patients)


def _statistic(of: Scores, threshold: float) -> Statistic:
    return together(
        ranking(of.score, of.truth),
        probabilistic(of.score, of.truth),
        decisions(of.score >= threshold, of.truth),
    )


def _agreement(first: Scores, second: Scores, threshold: float) -> dict[str, Any]:
    """How often two networks say the same at the threshold, right or wrong."""
    a, b = first.score >= threshold, second.score >= threshold
    flipped, right, still_right = a != b, a == first.truth, b == first.truth
    spoilt, mended = int((right & ~still_right).sum()), int((~right & still_right).sum())
    apart = np.abs(second.score - first.score)
    return {
        "count": len(a),
        "flipped": int(flipped.sum()),
        "flips": intervals(lambda weights: {"flips": _mean(weights, flipped)}, first.patients)["flips"],
        "kappa": _kappa(a, b),
        "mcnemar": {
            "spoilt": spoilt,
            "mended": mended,
            "p": float(f"{binomtest(spoilt, spoilt + mended).pvalue:.3g}") if spoilt + mended else 1.0,
        },
        "difference_of_p": {
            "mean": round(float(apart.mean()), 5),
            "p95": round(float(np.percentile(apart, 95)), 5),
            "largest": round(float(apart.max()), 5),
        },
        "by_distance": _by_distance(np.abs(first.score - threshold), flipped),
    }


def _mean(weights: Floats, flags: Flags) -> Floats:
    return (weights @ flags) / weights.sum(axis=1)


def _kappa(a: Flags, b: Flags) -> float | None:
    """Cohen's kappa; None where both say the same of everything, and it is not defined."""
    expected = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return None if expected == 1 else round(float(((a == b).mean() - expected) / (1 - expected)), 4)


def _by_distance(distance: Floats, flipped: Flags) -> list[dict[str, Any]]:
    rows = []
    for low, high in itertools.pairwise(DISTANCES):
        within = (distance >= low) & ((distance < high) | (high == DISTANCES[-1]))
        rows.append(
            {"from": low, "to": high, "count": int(within.sum()), "flipped": int((flipped & within).sum())}
        )
    return rows


def _states_changed(of: Read, name: str) -> dict[str, int]:
    """Clips whose shown state, abstaining included, is another: how many by ``from -> to``."""
    changed: dict[str, int] = {}
    for a, b in zip(of.predictions[FLOAT], of.predictions[name], strict=True):
        if a.state != b.state:
            key = f"{a.state} -> {b.state}"
            changed[key] = changed.get(key, 0) + 1
    return dict(sorted(changed.items()))


def _peaks(of: Read, reads: Specification, name: str) -> dict[str, Any]:
    """By how many cells the map's peak moves, in either direction at most, in the frame that speaks
    most of each clip that float calls positive."""
    moved = []
    negative = reads.labels.index(reads.negative)
    channels = [reads.map_channels.index(label) for label in reads.labels]
    called = clip_scores(of.predictions[FLOAT], reads).score >= reads.verdict.threshold
    for i in np.flatnonzero(called).tolist():
        frames = of.predictions[FLOAT][i].frames
        assert frames is not None
        at = int(frames[:, negative].argmin())
        maps = [of.maps[which][i][at][:, :, channels] for which in (FLOAT, name)]
        inside = cell_weights(of.clips[i].mask(reads.size), *maps[0].shape[:2]) > 0
        places = [
            np.array(np.unravel_index(np.where(inside, -p[:, :, negative], -2.0).argmax(), inside.shape))
            for p in (probabilities(each, reads.temperature) for each in maps)
        ]
        moved.append(int(np.abs(places[0] - places[1]).max()))
    return {
        "clips": len(moved),
        "median_cells": float(np.median(moved)) if moved else None,
        "largest_cells": max(moved, default=None),
    }


def pattern_scores(of: Read, reads: Specification, name: str) -> list[dict[str, float]]:
    """What a network says of each clip's supported patterns: its probability by pattern."""
    found = []
    for clip, maps in zip(of.clips, of.maps[name], strict=True):
        cells = cell_weights(clip.mask(reads.size), *maps.shape[1:3])
        frames = (pattern_probabilities(one, cells, reads.map_channels, reads.patterns) for one in maps)
        found.append(clip_patterns(frames))
    return found


def pattern_agreement(
    said: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], reads: Specification
) -> dict[str, Any]:
    """How far int8 follows float in each supported pattern: ``clips``, how many are ``named_otherwise``, and
    the ``difference_of_p``. ``said``: by clip, of float, which need not know every pattern of every clip."""
    found = {}
    for pattern in (of for of in reads.patterns if of.supported):
        pairs = [
            (a[pattern.name], b[pattern.name]) for a, b in zip(said, others, strict=True) if pattern.name in a
        ]
        if not pairs:
            continue
        before, after = np.array(pairs).T
        apart = np.abs(after - before)
        found[pattern.name] = {
            "clips": len(pairs),
            "named_otherwise": int(((before >= pattern.threshold) != (after >= pattern.threshold)).sum()),
            "difference_of_p": {
                "mean": round(float(apart.mean()), 5),
                "largest": round(float(apart.max()), 5),
            },
        }
    return found


def calibration(of: Read, reads: Specification, name: str) -> dict[str, Any]:
    """Calibration of float and another network's clips, at the frozen temperature and at the one that
    each would choose for itself on these clips."""
    found: dict[str, Any] = {"frozen_temperature": reads.temperature}
    for which in (FLOAT, name):
        fitted = fit_temperature(of.clips, reads, of.maps[which])
        refitted = dataclasses.replace(reads, temperature=fitted)
        before = clip_scores(of.predictions[which], reads)
        after = clip_scores(predict(of.clips, refitted, of.maps[which]), reads)
        found[which] = {
            "refitted_temperature": fitted,
            "before": _calibrated(before),
            "after": _calibrated(after),
        }
    return found


def _calibrated(of: Scores) -> dict[str, Any]:
    error = intervals(probabilistic(of.score, of.truth), of.patients)["calibration_error"]
    return {"calibration_error": error, "reliability": reliability(of.score, of.truth)}


def evidence(
    held: dict[str, Any] | None,
    of: Read | None,
    shipped: dict[str, Any],
    worst_layer: tuple[str, float],
    reads: Specification,
    name: str,
) -> Evidence:
    """What the gate weighs: ``held`` and ``of``, of patients that were not fitted on (None where there are
    none), the agreement of the network that is shipped, and its worst layer with what that loses."""
    agreed = shipped["clip"]
    of_shipped = {
        "shipped_clips": agreed["count"],
        "shipped_flipped": agreed["flipped"],
        "shipped_difference_of_p": agreed["difference_of_p"]["mean"],
        "worst_layer": worst_layer[0],
        "worst_layer_lost_db": worst_layer[1],
    }
    if held is None or of is None:
        return Evidence(0, 0, 0, 0, None, **of_shipped)
    before, after = (patient_scores(of.predictions[which], reads) for which in (FLOAT, name))
    threshold = reads.verdict.threshold
    lost = before.truth & (before.score >= threshold) & (after.score < threshold)
    clips = held["agreement"][name]["clip"]
    return Evidence(
        positive_patients=int(before.truth.sum()),
        lost=int(lost.sum()),
        clips=clips["count"],
        flipped=clips["flipped"],
        peak_cells=held["agreement"][name]["peaks"]["median_cells"],
        difference_of_p=clips["difference_of_p"]["mean"],
        **of_shipped,
    )
