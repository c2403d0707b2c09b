"""Reads a data set as the bedside would and scores it, a row a clip, intervals over patients."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from reader.bundle import Specification
from training.datasets import Sample
from training.views import ClipViews, clip_verdict

Float = NDArray[np.float32]
Indices = NDArray[np.intp]

RESAMPLES = 2000
CONFIDENCE = 0.95
SEED = 1


@dataclass(frozen=True)
class Prediction:
    """What was said of one sample. ``p``: probability by label, None without any reading."""

    sample: Sample
    state: str
    p: Float | None


def predict(clips: Sequence[ClipViews], reads: Specification, maps: Sequence[Float]) -> list[Prediction]:
    """Conclude from every clip's maps."""
    predictions = []
    for clip, of in zip(clips, maps, strict=True):
        state, verdict = clip_verdict(clip, reads, of)
        predictions.append(Prediction(clip.sample, state, None if verdict is None else verdict.p))
    return predictions


def write_predictions(path: Path, predictions: Sequence[Prediction], labels: Sequence[str]) -> None:
    """predictions.csv: path, label, patient, source, p_<label>..., state."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient", "source", *(f"p_{label}" for label in labels), "state"])
        for item in predictions:
            p = ["" for _ in labels] if item.p is None else [f"{value:.6f}" for value in item.p]
            sample = item.sample
            writer.writerow([sample.name, sample.label, sample.patient, sample.source, *p, item.state])


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def metrics(predictions: Sequence[Prediction], reads: Specification) -> dict[str, Any]:
    """Figures with 95 % intervals by bootstrap over patients; samples without a reading apart.

    Positive is any label but the negative one. ``forced``: decided at the rule's threshold.
    ``as_shown``: among clips that were given a label; ``abstained`` says how many were not.
    """
    read = [item for item in predictions if item.p is not None]
    figures: dict[str, Any] = {
        "samples": len(predictions),
        "patients": len({item.sample.patient for item in predictions}),
        "without_reading": len(predictions) - len(read),
        "threshold": reads.verdict.threshold,
        "interval": f"{CONFIDENCE:.0%} percentile bootstrap over patients, {RESAMPLES} resamples",
        "all": _figures(read, reads),
    }
    if any(item.sample.grade == "1" for item in read):
        figures["without_grade_1"] = _figures([item for item in read if item.sample.grade != "1"], reads)
    return figures


def _figures(read: Sequence[Prediction], reads: Specification) -> dict[str, Any]:
    negative = reads.labels.index(reads.negative)
    truth = np.array([item.sample.label != reads.negative for item in read], bool)
    score = np.array([1.0 - float(item.p[negative]) for item in read if item.p is not None])
    shown = np.array([item.state in reads.labels for item in read], bool)
    called = np.array([item.state != reads.negative for item in read], bool)
    positive = score >= reads.verdict.threshold
    counts = {"positive": int(truth.sum()), "negative": int((~truth).sum())}
    if not counts["positive"] or not counts["negative"]:
        return {**counts, "note": "one class only: no figure can be given"}
    patients = np.array([item.sample.patient or item.sample.name for item in read])
    resamples = _resamples(patients)

    def with_interval(figure: Callable[[Indices], float | None]) -> dict[str, Any]:
        return _interval(figure, resamples, len(read))

    def auc(i: Indices) -> float | None:
        both = 0 < truth[i].sum() < len(i)
        return float(roc_auc_score(truth[i], score[i])) if both else None

    return {
        **counts,
        "roc_auc": with_interval(auc),
        "forced": {
            "sensitivity": with_interval(lambda i: _share(positive[i][truth[i]])),
            "specificity": with_interval(lambda i: _share(~positive[i][~truth[i]])),
        },
        "abstained": with_interval(lambda i: _share(~shown[i])),
        "as_shown": {
            "sensitivity": with_interval(lambda i: _share(called[i][truth[i] & shown[i]])),
            "specificity": with_interval(lambda i: _share(~called[i][~truth[i] & shown[i]])),
        },
    }


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if values.size else None


def _resamples(patients: NDArray[np.str_]) -> list[Indices]:
    random = np.random.default_rng(SEED)
    members = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    return [
        np.concatenate([members[i] for i in random.integers(len(members), size=len(members))])
        for _ in range(RESAMPLES)
    ]


def _interval(
    figure: Callable[[Indices], float | None], resamples: list[Indices], count: int
) -> dict[str, Any]:
    value = figure(np.arange(count))
    if value is None:
        return {"value": None}
    drawn = [v for v in map(figure, resamples) if v is not None]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}
