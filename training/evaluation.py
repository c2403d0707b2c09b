"""Reads a data set as the bedside would and scores it: by frame, clip and patient, by subgroup,
with and without abstaining, intervals over patients."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam
from reader.bundle import Specification
from reader.preprocess import cell_weights
from reader.reader import worst_reading
from reader.verdict import pool, probabilities
from training.datasets import Sample, patient_digest
from training.localization import Located, localization_figures, parse_boxes
from training.metrics import (
    BINNING,
    CONFIDENCE,
    RESAMPLES,
    Flags,
    Floats,
    Names,
    abstention,
    at_sensitivity,
    binary_figures,
    confusion,
    decisions,
    intervals,
    label_figures,
    reliability,
    risk_coverage,
    together,
)
from training.views import (
    INPUTS_AT_ONCE,
    ClassMaps,
    ClipViews,
    look_through,
    read_maps,
    readings,
)

Float = NDArray[np.float32]

SUBGROUPS = ("source", "probe", "site", "grade")
SMALLEST_SUBGROUP = 10
"""Samples below which a subgroup is only counted."""
TARGETS = (0.90, 0.95)
"""Sensitivities at which operating points are given."""
FRAMES_NOTE = (
    "single frames, not averaged over time; a frame bears its clip's label, which it need not show, "
    "and long clips count for more"
)
PATIENTS_NOTE = (
    "a patient's largest clip score, positive where any clip is; patients with more clips have more "
    "chances of both"
)
TARGETS_NOTE = (
    "the thresholds at 90 % and 95 % sensitivity were found on this very data, so these rows are "
    "optimistic; their intervals find the threshold anew in every resample"
)


@dataclass(frozen=True)
class Prediction:
    """What was said of one sample.

    ``p``: probability by label, None without any reading. ``frames``: those of its single frames
    that gave a reading, float32 [frames, labels]. ``class_map`` and ``beam``: of the moment that ``p``
    is of, as in ``reader.reader.Reading``.
    """

    sample: Sample
    state: str
    p: Float | None
    frames: Float | None = None
    class_map: Float | None = None
    beam: Beam | None = None


@dataclass(frozen=True)
class Scores:
    """Readings as the arrays that ``metrics`` takes."""

    score: Floats
    truth: Flags
    patients: Names


@dataclass(frozen=True)
class Evaluated:
    """One data set and what came of it. ``figures``: of ``full_metrics``, and ``left_out`` (samples by
    label), ``patients_trained_on`` (None: not known) and ``patients_unknown``. ``facts``: what data it
    was."""

    name: str
    predictions: Sequence[Prediction]
    figures: dict[str, Any]
    facts: dict[str, str]


def read_samples(
    samples: Iterable[Sample], reads: Specification, class_maps: ClassMaps, rate: float | None
) -> Iterator[Prediction]:
    """Read samples one after another, in order; ``rate``: frames a second, None for all.

    Raises ClipError where a file cannot be read.
    """
    waiting: list[ClipViews] = []
    inputs = 0
    for sample in samples:
        waiting.append(look_through(sample, reads, rate))
        inputs += len(waiting[-1].pixels)
        if inputs >= INPUTS_AT_ONCE:
            yield from predict(waiting, reads, read_maps(waiting, class_maps))
            waiting, inputs = [], 0
    yield from predict(waiting, reads, read_maps(waiting, class_maps))


def predict(clips: Sequence[ClipViews], reads: Specification, maps: Sequence[Float]) -> list[Prediction]:
    """Conclude from every clip's maps."""
    predictions = []
    for clip, of in zip(clips, maps, strict=True):
        read = readings(clip, reads, of)
        worst = worst_reading(read, reads)
        if worst is None:
            commonest = Counter(reading.state for reading in read).most_common(1)[0][0]
            predictions.append(Prediction(clip.sample, commonest, None))
            continue
        its = read[worst]
        assert its.verdict is not None
        frames = _frame_probabilities(clip, reads, of)
        predictions.append(Prediction(clip.sample, its.state, its.verdict.p, frames, its.class_map, its.beam))
    return predictions


def _frame_probabilities(clip: ClipViews, reads: Specification, maps: Float) -> Float:
    if not len(maps):
        return np.zeros((0, len(reads.labels)), np.float32)
    channels = [reads.map_channels.index(label) for label in reads.labels]
    cells = cell_weights(clip.mask(reads.size), *maps.shape[1:3])
    return probabilities(np.stack([pool(of[:, :, channels], cells) for of in maps]), reads.temperature)


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
    """Figures of clips with 95 % intervals by bootstrap over patients; those without a reading apart.

    Positive is any label but the negative one. ``forced``: decided at the rule's threshold.
    ``as_shown``: among clips that were given a label; ``abstained`` says how many were not.
    ``without_reading_as_wrong``: forced, every clip without a reading counted as an error.
    """
    read = [item for item in predictions if item.p is not None]
    figures: dict[str, Any] = {
        "samples": len(predictions),
        "patients": len({item.sample.patient for item in predictions}),
        "without_reading": len(predictions) - len(read),
        "states": dict(Counter(item.state for item in predictions).most_common()),
        "threshold": reads.verdict.threshold,
        "interval": f"{CONFIDENCE:.0%} percentile bootstrap over patients, {RESAMPLES} resamples",
        "calibration_bins": BINNING,
        "all": _clip_figures(read, reads),
    }
    if any(item.sample.grade == "1" for item in read):
        figures["without_grade_1"] = _clip_figures([x for x in read if x.sample.grade != "1"], reads)
    if len(read) < len(predictions):
        figures["without_reading_as_wrong"] = _unread_as_wrong(predictions, reads)
    return figures


def full_metrics(
    predictions: Sequence[Prediction], reads: Specification, trained_on: set[str]
) -> dict[str, Any]:
    """``metrics`` and more: ``frame`` and ``patient`` beside the clips, ``subgroups``,
    ``operating_points``, ``abstaining``, ``reliability``, and ``labels`` where there are more than
    two. ``trained_on``: digests of the patients that the network has seen."""
    read = [item for item in predictions if item.p is not None]
    figures = metrics(predictions, reads)
    threshold = reads.verdict.threshold
    frames, patients = frame_scores(read, reads), patient_scores(read, reads)
    figures["frame"] = {"note": FRAMES_NOTE, **_binary(frames, threshold)}
    figures["patient"] = {"note": PATIENTS_NOTE, **_binary(patients, threshold)}
    figures["subgroups"] = _subgroups(read, reads, trained_on)
    if any(item.sample.boxes for item in read):
        figures["where"] = localization_figures(_located(read, reads), reads.size, threshold)
    if "roc_auc" in figures["all"]:
        clips = clip_scores(read, reads)
        figures["operating_points"] = _operating_points(clips, figures["all"]["forced"], threshold)
        figures["abstaining"] = _abstaining(read, clips, reads)
        figures["reliability"] = reliability(clips.score, clips.truth)
        if len(reads.labels) > 2:
            figures["labels"] = _label_figures(read, clips, reads)
    return figures


def clip_scores(read: Sequence[Prediction], reads: Specification) -> Scores:
    """Each clip's largest windowed score. An unknown patient counts as one of his own a clip."""
    return Scores(
        np.array([_positive(item.p, reads) for item in read if item.p is not None], np.float64),
        np.array([item.sample.label != reads.negative for item in read], bool),
        np.array([item.sample.patient or item.sample.name for item in read], str),
    )


def frame_scores(read: Sequence[Prediction], reads: Specification) -> Scores:
    """Every frame's own score, under its clip's label and patient."""
    clips = clip_scores(read, reads)
    scores = [_positive(np.zeros((0, 2)) if x.frames is None else x.frames, reads) for x in read]
    counts = [len(of) for of in scores]
    return Scores(
        np.concatenate([np.zeros(0), *scores]),
        np.repeat(clips.truth, counts),
        np.repeat(clips.patients, counts),
    )


def patient_scores(read: Sequence[Prediction], reads: Specification) -> Scores:
    """Each known patient's largest clip score."""
    clips = clip_scores([item for item in read if item.sample.patient], reads)
    patients, member = np.unique(clips.patients, return_inverse=True)
    score, truth = np.zeros(len(patients)), np.zeros(len(patients), bool)
    np.maximum.at(score, member, clips.score)
    np.logical_or.at(truth, member, clips.truth)
    return Scores(score, truth, patients)


def _positive(p: NDArray[Any], reads: Specification) -> Any:
    return 1.0 - p[..., reads.labels.index(reads.negative)].astype(np.float64)


def _binary(scores: Scores, threshold: float) -> dict[str, Any]:
    return binary_figures(scores.score, scores.truth, scores.patients, threshold)


def _clip_figures(read: Sequence[Prediction], reads: Specification) -> dict[str, Any]:
    clips = clip_scores(read, reads)
    figures = _binary(clips, reads.verdict.threshold)
    if "roc_auc" not in figures:
        return figures
    shown, called = _as_shown(read, reads)
    of = together(
        abstention(clips.score, clips.truth, reads.verdict.threshold, shown, called),
        decisions(called, clips.truth, shown),
    )
    found = intervals(of, clips.patients)
    for name in ("forced_error", "error_on_rest", "error_ratio"):
        found.pop(name, None)
    return {**figures, "abstained": found.pop("abstained"), "as_shown": found}


def _as_shown(read: Sequence[Prediction], reads: Specification) -> tuple[Flags, Flags]:
    """Whether each clip was given a label, and whether that is another than the negative one."""
    shown = np.array([item.state in reads.labels for item in read], bool)
    return shown, shown & np.array([item.state != reads.negative for item in read], bool)


def _unread_as_wrong(predictions: Sequence[Prediction], reads: Specification) -> dict[str, Any]:
    truth = np.array([item.sample.label != reads.negative for item in predictions])
    threshold = reads.verdict.threshold
    called = [
        not positive if item.p is None else _positive(item.p, reads) >= threshold
        for item, positive in zip(predictions, truth, strict=True)
    ]
    patients = np.array([item.sample.patient or item.sample.name for item in predictions])
    found = intervals(decisions(np.array(called, bool), truth), patients)
    return {name: found[name] for name in ("sensitivity", "specificity") if name in found}


def _operating_points(clips: Scores, forced: dict[str, Any], threshold: float) -> dict[str, Any]:
    names = ("sensitivity", "specificity", "ppv", "npv")
    points: dict[str, Any] = {
        "note": TARGETS_NOTE,
        "frozen": {"threshold": {"value": threshold}, **{x: forced[x] for x in names if x in forced}},
    }
    for target in TARGETS:
        of = at_sensitivity(clips.score, clips.truth, target)
        points[f"sensitivity_{round(100 * target)}"] = intervals(of, clips.patients)
    return points


def _abstaining(read: Sequence[Prediction], clips: Scores, reads: Specification) -> dict[str, Any]:
    shown, called = _as_shown(read, reads)
    threshold = reads.verdict.threshold
    of = abstention(clips.score, clips.truth, threshold, shown, called)
    return {
        **intervals(of, clips.patients),
        "confusion_on_rest": confusion(called[shown], clips.truth[shown]),
        "curve": risk_coverage(clips.score, clips.truth, threshold),
    }


def _located(read: Sequence[Prediction], reads: Specification) -> list[Located]:
    """Pictures whose boxes are known: those with some, and negative ones, which have none."""
    found = []
    for item in read:
        if not item.sample.boxes and item.sample.label != reads.negative:
            continue
        assert item.class_map is not None
        assert item.beam is not None
        boxes = parse_boxes(item.sample.boxes, item.sample.name)
        found.append(Located(item.class_map, item.beam, boxes, item.sample.patient or item.sample.name))
    return found


def _label_figures(read: Sequence[Prediction], clips: Scores, reads: Specification) -> dict[str, Any]:
    p = np.array([item.p for item in read], np.float64)
    truth = np.array([reads.labels.index(item.sample.label) for item in read])
    negative = reads.labels.index(reads.negative)
    others = p.copy()
    others[:, negative] = -1
    chosen = np.where(clips.score >= reads.verdict.threshold, others.argmax(axis=1), negative)
    return label_figures(p, truth, chosen, clips.patients, reads.labels)


def _subgroups(
    read: Sequence[Prediction], reads: Specification, trained_on: set[str]
) -> list[dict[str, Any]]:
    columns = {name: [str(getattr(item.sample, name)) for item in read] for name in SUBGROUPS}
    columns["patient"] = [_acquaintance(item.sample, trained_on) for item in read]
    rows = []
    for column, values in columns.items():
        counts = Counter(values)
        if len(counts) < 2:
            continue
        for value, count in sorted(counts.items()):
            row: dict[str, Any] = {"column": column, "value": value, "samples": count}
            of = [item for item, its in zip(read, values, strict=True) if its == value]
            row["patients"] = len({item.sample.patient for item in of})
            if count < SMALLEST_SUBGROUP:
                row["note"] = f"fewer than {SMALLEST_SUBGROUP} samples: no figures"
            else:
                row |= _clip_figures(of, reads)
            rows.append(row)
    return rows


def _acquaintance(sample: Sample, trained_on: set[str]) -> str:
    if not sample.patient:
        return ""
    return "trained on" if patient_digest(sample.patient) in trained_on else "new"
