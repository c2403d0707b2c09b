"""An evaluation as one page that opens anywhere, and its worst mistakes as pictures beside it.

``report.html`` holds figures and plots only and can be published. ``pictures`` shows what is inside
the beam of real patients and stays with the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve
from tqdm import tqdm

from reader.bundle import Specification
from reader.preprocess import Preprocessor
from reader.reader import worst_reading
from training import page
from training.evaluation import Evaluated, Prediction, Scores, clip_scores, frame_scores, patient_scores
from training.metrics import SMALLEST_PROBABILITY
from training.page import BLUE, GREEN, NAMES, NO_INTERVAL, ORANGE, SKY, VERMILLION
from training.views import ClassMaps, look_through, read_maps, readings

Image = NDArray[np.uint8]

LEVELS = (("clip", "-", BLUE), ("frame", ":", ORANGE), ("patient", "--", GREEN))
WORST = 24
"""Mistakes that are shown as pictures."""
HEAT = (0, 94, 213)
"""Vermillion in OpenCV's order of colours."""
HEAT_STRENGTH = 0.6
NOT_KNOWN = "not known"
NO_LABEL = "no label"


@dataclass(frozen=True)
class Evaluation:
    """What a report is made of. ``facts``: what model and command it was. ``history``: losses an
    epoch and fold, where the model is a run."""

    title: str
    reads: Specification
    parts: Sequence[Evaluated]
    facts: dict[str, str]
    limits: Sequence[str]
    history: Sequence[dict[str, Any]] = field(default=())


def render(evaluation: Evaluation) -> str:
    """The whole page: HTML with its plots inside, reaching for nothing outside itself."""
    first = evaluation.parts[0]
    title = f"Evaluation: {evaluation.title}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(_lead(first, evaluation.reads))}</p>',
        _beware(evaluation.parts),
        *(_section(part, evaluation.reads, i > 0) for i, part in enumerate(evaluation.parts)),
        _training(evaluation.history) if evaluation.history else "",
        _not_shown(evaluation),
        _computed(first.figures, evaluation.reads),
        _provenance(evaluation),
    ]
    return page.render(title, body)


def _lead(part: Evaluated, reads: Specification) -> str:
    figures, clips = part.figures, part.figures["all"]
    others = ", ".join(label for label in reads.labels if label != reads.negative)
    return (
        f"{figures['samples']} clips and stills of {_patients(figures)} from {part.name}: "
        f"{clips['positive']} {others}, {clips['negative']} {reads.negative}, "
        f"{figures['without_reading']} without a reading. Positive means {others}."
    )


def _patients(figures: dict[str, Any]) -> str:
    unknown = figures["patients_unknown"]
    if unknown == figures["samples"]:
        return "unknown patients"
    known = figures["patients"] - bool(unknown)
    return f"{known} patients" + (f" (and {unknown} of unknown patients)" if unknown else "")


def _beware(parts: Sequence[Evaluated]) -> str:
    lines = []
    for part in parts:
        seen, unknown = part.figures["patients_trained_on"], part.figures["patients_unknown"]
        if seen:
            lines.append(
                f"{part.name}: the network was trained on {seen} of these patients. Figures that "
                "include them say how well it remembers, not how well it reads new patients."
            )
        if seen is None:
            lines.append(
                f"{part.name}: the model does not say whom it was trained on, so nobody can tell whether "
                "these patients are new to it."
            )
        if unknown:
            lines.append(
                f"{part.name}: {unknown} samples name no patient. Each counts as a patient of its own, "
                "so the intervals are too narrow, and nobody can say whether they were trained on."
            )
    return page.beware(lines)


def _section(part: Evaluated, reads: Specification, external: bool) -> str:
    figures = part.figures
    read = [item for item in part.predictions if item.p is not None]
    heading = f"External data: {part.name}" if external else f"Results: {part.name}"
    blocks = [f"<h2>{escape(heading)}</h2>"]
    if external:
        blocks.append(f'<p class="lead">{escape(_lead(part, reads))}</p>')
    blocks += [_tiles(figures), _levels(figures), _state_table(figures, reads)]
    blocks.append(page.image(_confusions(part, reads), "Confusion matrices: all decided, and as shown"))
    if "roc_auc" in figures["all"]:
        clips = clip_scores(read, reads)
        levels = {"clip": clips, "frame": frame_scores(read, reads), "patient": patient_scores(read, reads)}
        blocks += [
            "<h3>Telling apart</h3>",
            page.image(
                _curves(levels, figures), "ROC and precision-recall curves by frame, clip and patient"
            ),
            page.image(_histogram(clips, reads), "Clip scores by label, with threshold and abstain band"),
            _operating_points(figures["operating_points"]),
            "<h3>Calibration</h3>",
            page.image(_reliability(figures), "Reliability diagram of clip scores"),
            _abstaining(figures),
        ]
    if "labels" in figures:
        blocks.append(_labels(figures["labels"]))
    if "where" in figures:
        blocks.append(_where(figures["where"]))
    return "\n".join([*blocks, _subgroups(figures["subgroups"])])


def _tiles(figures: dict[str, Any]) -> str:
    clips = figures["all"]
    forced = clips.get("forced", {})
    shown = (
        ("ROC AUC", clips.get("roc_auc")),
        ("Sensitivity", forced.get("sensitivity")),
        ("Specificity", forced.get("specificity")),
        ("Balanced accuracy", forced.get("balanced_accuracy")),
        ("Calibration error", clips.get("calibration_error")),
        ("Abstained", clips.get("abstained")),
    )
    tiles = [(name, f"{of['value']:.3f}", page.interval(of)) for name, of in shown if of is not None]
    note = clips.get("note", "Of clips. Sensitivity, specificity: all decided at the frozen threshold")
    return page.tiles(tiles) + page.note(f"{note}.")


def _levels(figures: dict[str, Any]) -> str:
    columns: dict[str, dict[str, Any]] = {"By clip": figures["all"]}
    if "without_grade_1" in figures:
        columns["By clip, without grade 1"] = figures["without_grade_1"]
    columns |= {"By frame": figures["frame"], "By patient": figures["patient"]}
    rows = [
        ["Positive / negative", *(f"{of['positive']} / {of['negative']}" for of in columns.values())],
        [
            "Patients with these",
            *(f"{of['positive_patients']} / {of['negative_patients']}" for of in columns.values()),
        ],
    ]
    for key, name in NAMES.items():
        cells = [of.get(key) or of.get("forced", {}).get(key) for of in columns.values()]
        if any(cells):
            rows.append([name, *map(page.value, cells)])
    caption = f"Everything decided at the frozen threshold {figures['threshold']:g}; 95 % intervals"
    return page.table(["", *columns], rows, caption)


def _state_table(figures: dict[str, Any], reads: Specification) -> str:
    rows = []
    for state, count in figures["states"].items():
        meaning = (
            "a label" if state in reads.labels else "abstained" if state == "uncertain" else "no reading"
        )
        rows.append([state, meaning, str(count), f"{count / figures['samples']:.1%}"])
    table = page.table(["State", "Meaning", "Clips", "Share"], rows, "What the reader said")
    wrong = figures.get("without_reading_as_wrong")
    if not wrong:
        return table
    counted = ", ".join(f"{name} {page.value(of)}" for name, of in wrong.items())
    return table + page.note(f"Every clip without a reading counted as an error: {counted}.")


def _operating_points(points: dict[str, Any]) -> str:
    names = {
        "frozen": "Frozen threshold",
        "sensitivity_90": "At 90 % sensitivity (found on this data)",
        "sensitivity_95": "At 95 % sensitivity (found on this data)",
    }
    keys = ("threshold", "sensitivity", "specificity", "ppv", "npv")
    rows = [[name, *(page.value(points[key].get(of)) for of in keys)] for key, name in names.items()]
    head = ["Operating point", "Threshold", *(NAMES[key] for key in keys[1:])]
    table = page.table(head, rows, "PPV and NPV hold for this data's share of positives only")
    return f"<h3>Operating points</h3>{table}{page.note(page.sentence(points['note']))}"


def _abstaining(figures: dict[str, Any]) -> str:
    of, shown = figures["abstaining"], figures["all"]["as_shown"]
    rows = [
        ["Share abstained", page.value(of.get("abstained"))],
        ["Error when all are decided", page.value(of.get("forced_error"))],
        ["Error on the rest", page.value(of.get("error_on_rest"))],
        ["Error on the rest / error when all are decided", page.value(of.get("error_ratio"))],
        *([f"{name} on the rest", page.value(shown[key])] for key, name in NAMES.items() if key in shown),
    ]
    return (
        "<h3>Abstaining</h3>"
        + page.image(_risk_coverage(figures), "Error on the decided clips against the share that is decided")
        + page.table(["Figure", "Value"], rows, "The rest: clips that were given a label, as at the bedside")
    )


def _labels(of: dict[str, Any]) -> str:
    overall = [
        [name, page.value(of.get(key))]
        for key, name in (
            ("accuracy", "Accuracy"),
            ("balanced_accuracy", "Balanced accuracy (macro)"),
            ("kappa", "Kappa, quadratic weights"),
            ("loss", "Loss (log loss)"),
        )
    ]
    rows = [
        [label, str(part["samples"]), page.value(part.get("sensitivity")), page.value(part.get("roc_auc"))]
        for label, part in of["by_label"].items()
    ]
    note = "Kappa's weights take the labels in the task's order; where that is no order, pass it over"
    return (
        "<h3>All labels</h3>"
        + page.table(["Figure", "Value"], overall, note)
        + page.table(["Label", "Clips", "Sensitivity", "AUC against the rest"], rows, "By label")
    )


def _where(figures: dict[str, Any]) -> str:
    names = {
        "pointing_game": "Peak inside a true box",
        "pointing_by_chance": "The same for a random point in the beam",
        "union_iou": "Intersection over union of all boxes",
        "mean_average_precision": "Mean average precision, IoU 0.4 to 0.75",
    }
    rows = [[title, page.value(figures.get(key))] for key, title in names.items()]
    caption = f"{figures['with_boxes']} of {figures['pictures']} pictures have boxes"
    return "<h3>Where it is</h3>" + page.table(["Figure", "Value"], rows, caption)


def _subgroups(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    told = [row for row in rows if "forced" in row]
    few = [row for row in rows if "forced" not in row]
    cells = [
        [
            f"{row['column']}: {row['value'] or NOT_KNOWN}",
            str(row["patients"]),
            f"{row['positive']} / {row['negative']}",
            *(page.value(row.get(key) or row["forced"].get(key)) for key in _SUBGROUP_FIGURES),
        ]
        for row in told
    ]
    head = ["Subgroup", "Patients", "Positive / negative", *(NAMES[key] for key in _SUBGROUP_FIGURES)]
    note = ""
    if few:
        clips = sum(row["samples"] for row in few)
        note = page.note(
            f"Too few clips for figures: {len(few)} more values, {clips} clips in all; "
            "metrics.json counts them."
        )
    caption = "Clips, all decided at the frozen threshold. Many looks: some rows differ by chance"
    return f"<h3>Subgroups</h3>{page.table(head, cells, caption) if cells else ''}{note}"


_SUBGROUP_FIGURES = ("roc_auc", "sensitivity", "specificity", "calibration_error")


def _training(history: Sequence[dict[str, Any]]) -> str:
    return "<h2>Training</h2>" + page.image(_losses(history), "Loss by epoch and fold")


def _not_shown(evaluation: Evaluation) -> str:
    lines = [
        "The labels are taken as the truth. Where experts disagree, so would the figures.",
        "It is a reading of stored clips, not a trial: nobody's care was changed by it.",
        "Patients are recognized by their identifier only: the same patient under another name would "
        "not be noticed, neither here nor among those trained on.",
        "Patients, machines and sites other than these may read differently.",
    ]
    for part in evaluation.parts:
        if left_out := part.figures["left_out"]:
            counts = ", ".join(f"{label or NO_LABEL} ({count})" for label, count in left_out.items())
            lines.append(f"{part.name}: samples of labels that the task leaves out were not read: {counts}.")
        if unread := part.figures["without_reading"]:
            lines.append(f"{part.name}: {unread} clips without a reading are outside the main figures.")
    return "<h2>What this does not show</h2>" + page.items([*lines, *evaluation.limits])


def _computed(figures: dict[str, Any], reads: Specification) -> str:
    rule = reads.verdict
    lines = [
        f"Intervals: {figures['interval']}. A patient's clips are drawn together. {NO_INTERVAL}: no "
        "resample differed, so there is no interval; with no error in n patients, up to "
        "1 - 0.05^(1/n) of such patients may still be misread (95 %).",
        "Clip: the largest windowed score in it, and the state at that moment, as at the bedside: "
        f"{rule.over} over {rule.window:g} s, {reads.negative} below {rule.normal_below:g}, another label "
        f"from {rule.abnormal_from:g}, cannot tell between.",
        f"Frame: {page.sentence(figures['frame']['note'])}",
        f"Patient: {page.sentence(figures['patient']['note'])}",
        f"Loss: mean -log of the truth's probability, clipped at {SMALLEST_PROBABILITY:g}. Calibration "
        f"error: {figures['calibration_bins']}, mean gap weighted by readings. PR AUC: average precision.",
    ]
    return "<h2>How it was computed</h2>" + page.items(lines)


def _provenance(evaluation: Evaluation) -> str:
    rows = [[key, value] for key, value in evaluation.facts.items()]
    for part in evaluation.parts:
        rows += [[f"{part.name}: {key}", value] for key, value in part.facts.items()]
    return f"<h2>What was evaluated</h2>{page.table(['', ''], rows)}"


def _confusions(part: Evaluated, reads: Specification) -> Figure:
    states = [*reads.labels, *(state for state in part.figures["states"] if state not in reads.labels)]
    said = Counter((item.sample.label, item.state) for item in part.predictions)
    shown = np.array([[said[label, state] for state in states] for label in reads.labels])
    figure, axes = page.axes(9.6, 1.6 + 0.75 * len(reads.labels), 2)
    _matrix(axes[0], _forced_matrix(part, reads), reads.labels, reads.labels, "All decided at the threshold")
    _matrix(axes[1], shown, reads.labels, states, "As shown at the bedside")
    return figure


def _forced_matrix(part: Evaluated, reads: Specification) -> NDArray[np.int_]:
    if "labels" in part.figures:
        return np.array(part.figures["labels"]["confusion"])
    negative = reads.labels.index(reads.negative)
    matrix = np.zeros((len(reads.labels), len(reads.labels)), int)
    for item in part.predictions:
        if item.p is not None:
            others = np.where(np.arange(len(item.p)) == negative, -1, item.p)
            positive = 1 - float(item.p[negative]) >= reads.verdict.threshold
            matrix[reads.labels.index(item.sample.label), others.argmax() if positive else negative] += 1
    return matrix


def _matrix(
    ax: Axes, counts: NDArray[np.int_], rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        text = f"{count}\n{shares[i, j]:.0%}"
        ax.text(j, i, text, ha="center", va="center", color="white" if shares[i, j] > 0.55 else "black")
    ax.set_xticks(range(len(columns)), [page.plain(name) for name in columns])
    ax.set_yticks(range(len(rows)), [page.plain(name) for name in rows])
    ax.set(xlabel="said", ylabel="label")
    ax.set_title(title, fontsize=11, loc="left")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _curves(levels: dict[str, Scores], figures: dict[str, Any]) -> Figure:
    figure, (roc, pr) = page.axes(9.6, 4.6, 2)
    for name, line, colour in LEVELS:
        of = figures["all" if name == "clip" else name]
        if "roc_auc" not in of:
            continue
        scores = levels[name]
        fpr, tpr, _ = roc_curve(scores.truth, scores.score)
        roc.plot(fpr, tpr, line, color=colour, label=f"{name}: AUC {of['roc_auc']['value']:.3f}")
        precision, recall, _ = precision_recall_curve(scores.truth, scores.score, drop_intermediate=True)
        label = f"{name}: AP {of['pr_auc']['value']:.3f}"
        pr.step(recall, precision, line, where="post", color=colour, label=label)
    forced = figures["all"]["forced"]
    sensitivity = forced["sensitivity"]["value"]
    name = "clip, frozen threshold"
    roc.plot(1 - forced["specificity"]["value"], sensitivity, "o", ms=8, color=BLUE, label=name)
    if "ppv" in forced:
        pr.plot(sensitivity, forced["ppv"]["value"], "o", ms=8, color=BLUE, label=name)
    roc.plot([0, 1], [0, 1], color="0.7", lw=1)
    pr.axhline(levels["clip"].truth.mean(), color="0.7", lw=1)
    roc.set(xlabel="1 - specificity", ylabel="sensitivity")
    roc.set_title("ROC", fontsize=11, loc="left")
    pr.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)")
    pr.set_title("Precision and recall (grey: share of positive clips)", fontsize=11, loc="left")
    for ax in (roc, pr):
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.legend(frameon=False, fontsize=9, loc="lower right" if ax is roc else "lower left")
    return figure


def _histogram(clips: Scores, reads: Specification) -> Figure:
    figure, (ax,) = page.axes(9.6, 2.9)
    rule, bins = reads.verdict, [i / 25 for i in range(26)]
    kinds = (
        (reads.negative, ~clips.truth, SKY, ""),
        ("another label", clips.truth, VERMILLION, "//"),
    )
    for name, of, colour, hatch in kinds:
        ax.hist(
            clips.score[of],
            bins=bins,
            alpha=0.6,
            color=colour,
            edgecolor="white",
            hatch=hatch,
            label=page.plain(f"{name} ({int(of.sum())})"),
        )
    ax.axvspan(rule.normal_below, rule.abnormal_from, color="0.85", zorder=0, label="abstain band")
    ax.axvline(rule.threshold, color="black", lw=1, label=f"threshold {rule.threshold:g}")
    ax.set(
        xlabel=page.plain(f"clip score: probability of a label other than {reads.negative}"), ylabel="clips"
    )
    ax.set_title("Clip scores", fontsize=11, loc="left")
    ax.legend(frameon=False, fontsize=9, ncols=2)
    return figure


def _reliability(figures: dict[str, Any]) -> Figure:
    figure, (ax, counts) = page.axes(9.6, 4.0, 2)
    bins = figures["reliability"]
    said, true = [of["probability"] for of in bins], [of["positive"] for of in bins]
    ax.plot([0, 1], [0, 1], color="0.7", lw=1)
    ax.plot(said, true, "o-", color=BLUE)
    ax.set(xlabel="mean score of the bin", ylabel="share that is positive", xlim=(0, 1), ylim=(-0.02, 1.02))
    error = figures["all"]["calibration_error"]["value"]
    ax.set_title(f"Reliability (calibration error {error:.3f})", fontsize=11, loc="left")
    counts.bar(said, [of["readings"] for of in bins], width=0.05, color=BLUE)
    counts.set(xlabel="mean score of the bin", ylabel="clips", xlim=(0, 1))
    counts.set_title("Clips in each bin", fontsize=11, loc="left")
    return figure


def _risk_coverage(figures: dict[str, Any]) -> Figure:
    figure, (ax,) = page.axes(6.4, 3.6)
    of = figures["abstaining"]
    ax.step([p["coverage"] for p in of["curve"]], [p["error"] for p in of["curve"]], where="post", color=BLUE)
    ax.plot(1, of["forced_error"]["value"], "s", color=VERMILLION, label="all decided", clip_on=False)
    if "error_on_rest" in of:
        rest = 1 - of["abstained"]["value"], of["error_on_rest"]["value"]
        ax.plot(*rest, "o", color=GREEN, label="as shown (rule of the bundle)", clip_on=False)
    ax.set(xlabel="share decided (coverage)", ylabel="error among them", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    ax.set_title("Error as the demanded |score - threshold| rises", fontsize=11, loc="left")
    ax.legend(frameon=False, fontsize=9)
    return figure


def _losses(history: Sequence[dict[str, Any]]) -> Figure:
    figure, (ax,) = page.axes(9.6, 3.8)
    colours = (BLUE, VERMILLION, GREEN, ORANGE, SKY, "#CC79A7", "#000000")
    for i, fold in enumerate(dict.fromkeys(str(of["fold"]) for of in history)):
        epochs = [of for of in history if str(of["fold"]) == fold]
        colour = colours[i % len(colours)]
        at = list(range(1, len(epochs) + 1))
        ax.plot(at, [of["loss"] for of in epochs], ".-", color=colour, label=page.plain(fold))
        watched = [
            (i, of["validation_loss"]) for i, of in zip(at, epochs, strict=True) if "validation_loss" in of
        ]
        if watched:
            label = page.plain(f"{fold}, watched for early stopping")
            ax.plot(*zip(*watched, strict=True), ".--", color=colour, label=label)
    ax.set(xlabel="epoch", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylim(bottom=0)
    ax.set_title("Loss (dashed: patients watched for early stopping)", fontsize=11, loc="left")
    ax.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def worst_mistakes(predictions: Sequence[Prediction], reads: Specification) -> list[Prediction]:
    """Clips on the wrong side of the threshold, farthest from it first, WORST at most."""
    read = [item for item in predictions if item.p is not None]
    clips = clip_scores(read, reads)
    apart = np.abs(clips.score - reads.verdict.threshold)
    wrong = np.flatnonzero((clips.score >= reads.verdict.threshold) != clips.truth)
    return [read[i] for i in wrong[np.argsort(-apart[wrong], kind="stable")][:WORST]]


def write_pictures(
    folder: Path,
    mistakes: Sequence[Prediction],
    reads: Specification,
    class_maps: ClassMaps,
    rate: float | None,
) -> None:
    """Each mistake at its largest score as ``<rank>.png``, and a page that lists them.

    Left the input as the network saw it, right the same under its class map. Nothing outside the
    beam is drawn. Raises ClipError where a file can no longer be read.
    """
    folder.mkdir()
    negative = reads.labels.index(reads.negative)
    rows = []
    for rank, item in enumerate(tqdm(mistakes, desc="drawing", unit="clip", disable=None), 1):
        assert item.p is not None
        name = f"{rank:02}.png"
        cv2.imwrite(str(folder / name), _worst_picture(item, reads, class_maps, rate))
        said = f"{rank}. {item.sample.label}, scored {1 - float(item.p[negative]):.3f}, shown {item.state}"
        rows.append(f'<h3>{escape(said)}</h3><p class="note">{escape(item.sample.name)}</p>')
        rows.append(f'<img src="{name}" alt="{escape(said)}" width="{4 * reads.size}">')
    body = [
        "<h1>The worst mistakes</h1>",
        '<div class="beware"><p>These are pictures of patients: keep them with the data, and do not '
        "publish them.</p></div>",
        f"<p>Decided wrongly at the threshold {reads.verdict.threshold:g}, farthest from it first, at the "
        "moment of each clip's largest score. Right: the class map, stronger where the network sees "
        f"another label than {escape(reads.negative)}.</p>",
        *(rows or ["<p>None was decided wrongly.</p>"]),
    ]
    (folder / "index.html").write_text(page.render("The worst mistakes", body, "'self'"), encoding="utf-8")


def _worst_picture(
    item: Prediction, reads: Specification, class_maps: ClassMaps, rate: float | None
) -> Image:
    clip = look_through(item.sample, reads, rate)
    (maps,) = read_maps([clip], class_maps)
    read = readings(clip, reads, maps)
    at = worst_reading(read, reads)
    assert at is not None
    view, heat = clip.views[at], read[at].class_map
    assert view.pixels is not None
    assert view.beam is not None
    assert heat is not None
    now = view.pixels[:, :, int(np.argmax(reads.channels))]
    return overlaid(now, heat, Preprocessor(view.beam, reads.size).mask)


def overlaid(pixels: Image, heat: NDArray[np.float32], mask: Image) -> Image:
    """An input beside itself under its class map: BGR uint8 [size, 2 size, 3].

    ``pixels``, ``mask`` uint8 [size, size]; ``heat`` [rows, columns], 0 to 1. Black outside the mask.
    """
    inside = np.where(mask > 0, pixels, 0)[:, :, None].repeat(3, axis=2)
    smooth = cv2.resize(heat, pixels.shape[::-1], interpolation=cv2.INTER_LINEAR)
    strength = HEAT_STRENGTH * np.where(mask > 0, smooth, 0)[:, :, None]
    hot = inside * (1 - strength) + np.array(HEAT) * strength
    return np.hstack([inside, hot.round().astype(np.uint8)])
