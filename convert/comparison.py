"""Networks side by side: cross-validated quality against int8 size and latency."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from convert.tflite import to_int8
from reader.bundle import MODEL, Specification
from reader.runner import LiteRtRunner
from training import networks
from training.calibration import choose_calibration
from training.datasets import DataError, Sample, Task
from training.evaluation import Prediction, clip_scores, metrics, predict, write_json, write_predictions
from training.fitting import Recipe, Start
from training.folds import Folds, cross_validate
from training.pairing import clearly_worse, paired_difference
from training.rules import choose_rule
from training.runs import RATE, close_part, named, open_part, specification
from training.views import ClipViews, gather_views

CALIBRATION_IMAGES = 60
INVOKES = 60
"""Timed invokes a network, after a few that are not."""
PICK = (
    "the fastest in int8 among the networks whose AUC is not clearly below the best one's (the 95 % interval "
    "of the paired difference reaches 0)"
)
REDUCED = {"epochs": 2, "frames_a_clip": 4}
REDUCED_FOLDS = 2


@dataclass(frozen=True)
class Protocol:
    """``name`` appears in the table. ``changes``: to every network's recipe."""

    name: str
    folds: Folds
    changes: dict[str, int]


def compare_networks(
    samples: Sequence[Sample],
    task: Task,
    names: Sequence[str],
    protocol: Protocol,
    weights: dict[str, Path],
    out: Path,
    resume: bool,
) -> dict[str, Any]:
    """Cross-validate networks on the same folds; writes comparison.json, .csv, .md, .png and the
    out-of-fold predictions of each. ``weights``: ImageNet files by network.

    Raises DataError where ``out`` exists or the data cannot be split.
    """
    recipes = {name: Recipe.of(name, **protocol.changes) for name in names}
    started = {
        "task": asdict(task),
        "recipes": {name: asdict(recipe) for name, recipe in recipes.items()},
        "folds": [protocol.folds.count, protocol.folds.only, protocol.folds.by_source],
        "weights": {name: str(path) for name, path in weights.items()},
        "samples": named(samples),
    }
    part = open_part(out, started, resume)
    sizes = {recipe.size for recipe in recipes.values()}
    if len(sizes) > 1:
        raise DataError("networks of one input size can be compared on the same views")
    reads = specification(task, next(iter(recipes.values())))
    clips = gather_views(samples, reads, RATE)
    rows, scores = [], {}
    for name, recipe in recipes.items():
        start = Start(weights.get(name))
        predictions, ruled = _cross_validated(clips, task, recipe, protocol, start, reads, part / name)
        write_predictions(part / f"predictions_{name}.csv", predictions, reads.labels)
        figures = metrics(predictions, ruled)
        rows.append({"network": name, **_speed(recipe, reads, clips, start), "figures": figures})
        scores[name] = predictions
    comparison = {"protocol": protocol.name, "pick_rule": PICK, **_ranked(rows, scores, reads)}
    _write(part, comparison, task)
    for name in recipes:
        shutil.rmtree(part / name)
    close_part(part, out)
    return comparison


def _cross_validated(
    clips: Sequence[ClipViews],
    task: Task,
    recipe: Recipe,
    protocol: Protocol,
    start: Start,
    reads: Specification,
    part: Path,
) -> tuple[list[Prediction], Specification]:
    part.mkdir(exist_ok=True)
    held, _ = cross_validate(clips, task, recipe, protocol.folds, start, (), reads, RATE, part)
    read = [clip for clip, of in zip(clips, held, strict=True) if of is not None]
    maps = [of for of in held if of is not None]
    ruled, _ = choose_rule(read, reads, maps, task)
    return predict(read, ruled, maps), ruled


def _speed(recipe: Recipe, reads: Specification, clips: Sequence[ClipViews], start: Start) -> dict[str, Any]:
    """Size and latency of the int8 network with its starting weights: fitting changes neither."""
    network = networks.build(recipe.network, recipe.size, len(reads.labels), recipe.dropout, batch=1)
    loaded = networks.load_pretrained(network, recipe.network, start.weights)
    inputs = choose_calibration(clips, recipe.seed, CALIBRATION_IMAGES).inputs
    model = to_int8(network, inputs)
    runner = LiteRtRunner(model, 1, MODEL)
    taken = [_timed(runner, pixels) for pixels in np.resize(inputs, (INVOKES + 5, *inputs.shape[1:]))]
    return {
        "start": loaded or "random",
        "parameters": int(network.count_params()),
        "int8_megabytes": round(len(model) / 1e6, 2),
        "int8_ms": round(1000 * float(np.median(taken[5:])), 2),
    }


def _timed(runner: LiteRtRunner, pixels: NDArray[np.uint8]) -> float:
    began = time.perf_counter()
    runner.class_map(pixels)
    return time.perf_counter() - began


def _ranked(
    rows: list[dict[str, Any]], predictions: dict[str, list[Prediction]], reads: Specification
) -> dict[str, Any]:
    """Each network against the best on the clips that all of them read, and the pick."""
    kept = [
        i for i in range(len(next(iter(predictions.values()))))
        if all(of[i].p is not None for of in predictions.values())
    ]  # fmt: skip
    first = clip_scores([next(iter(predictions.values()))[i] for i in kept], reads)
    score = {name: clip_scores([of[i] for i in kept], reads).score for name, of in predictions.items()}
    best = max(rows, key=lambda row: row["figures"]["all"]["roc_auc"]["value"])["network"]
    for row in rows:
        name = row["network"]
        row["against_best"] = (
            None if name == best else paired_difference(score[best], score[name], first.truth, first.patients)
        )
    as_good = [r for r in rows if r["against_best"] is None or not clearly_worse(r["against_best"])]
    picked = min(as_good, key=lambda row: row["int8_ms"])["network"]
    return {"clips": len(kept), "best": best, "picked": picked, "networks": rows}


def _write(part: Path, comparison: dict[str, Any], task: Task) -> None:
    write_json(part / "comparison.json", comparison)
    lines = table(comparison)
    with (part / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([lines[0], *lines[1:]])
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "---|" * len(lines[0]))
    head = f"# {task.title}\n\nProtocol: {comparison['protocol']}. Picked: **{comparison['picked']}**, "
    (part / "comparison.md").write_text(head + PICK + ".\n\n" + "\n".join(text) + "\n", encoding="utf-8")
    _plot(comparison).savefig(part / "comparison.png", dpi=120)


def table(comparison: dict[str, Any]) -> list[list[str]]:
    """The comparison as rows of words, the heading first."""
    lines = [["network", "start", "AUC (95 %)", "against the best", "int8 MB", "int8 ms"]]
    for row in comparison["networks"]:
        auc, apart = row["figures"]["all"]["roc_auc"], row["against_best"]
        lines.append(
            [
                row["network"],
                row["start"],
                f"{auc['value']:.3f} ({auc['low']:.3f}-{auc['high']:.3f})",
                "best"
                if apart is None
                else f"{apart['value']:+.3f} ({apart['low']:+.3f} to {apart['high']:+.3f})",
                f"{row['int8_megabytes']:.2f}",
                f"{row['int8_ms']:.2f}",
            ]
        )
    return lines


def _plot(comparison: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in comparison["networks"]:
        auc = row["figures"]["all"]["roc_auc"]
        picked = row["network"] == comparison["picked"]
        low, high = auc["value"] - auc["low"], auc["high"] - auc["value"]
        colour = "#D55E00" if picked else "#0072B2"
        axes.errorbar(row["int8_ms"], auc["value"], [[low], [high]], fmt="o", color=colour, capsize=4)
        axes.annotate(
            row["network"] + (" (picked)" if picked else ""),
            (row["int8_ms"], auc["high"]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            color=colour,
        )
    axes.margins(x=0.3, y=0.12)
    axes.set(xlabel="int8 latency on this machine, one thread, ms", ylabel="clip AUC, out of fold, 95 %")
    axes.set_title(f"Quality against latency ({comparison['protocol']})", fontsize=10)
    axes.grid(alpha=0.3)
    return figure
