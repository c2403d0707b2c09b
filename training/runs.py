"""A training run: cross-validate a recipe by patient, choose the verdict rule, fit on everything.

A run's folder holds ``run.json`` (recipe, task, specification, figures, patients), the network's
weights, ``calibration.npz`` (inputs of training patients, for quantization) and the pooled
out-of-fold ``predictions.csv``. It is written under ``<name>.part`` and renamed when whole; a part
with the same recipe and data is taken up where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from reader.bundle import Specification
from reader.preprocess import cell_weights
from reader.verdict import VerdictRule, pool
from training.datasets import DataError, Sample, Task, patient_digest, patient_folds
from training.evaluation import Prediction, metrics, predict, write_json, write_predictions
from training.fitting import NetworkMaps, Recipe, build, fit
from training.views import ClipViews, gather_views, read_maps

Float = NDArray[np.float32]

RATE = 5.0
"""Frames a second that are looked at in training; the verdict counts in seconds, not frames."""
WINDOW, HYSTERESIS, HOLD = 2.0, 0.04, 0.8
"""The verdict's window, hysteresis and hold: set by hand, for the bedside's sake."""
ABSTAIN_SHARE = 0.12
"""Share of clips nearest to the threshold on which the rule abstains."""
CALIBRATION_IMAGES = 240
WEIGHTS = "network.weights.h5"


@dataclass(frozen=True)
class Run:
    """A finished run, as read back from its folder."""

    path: Path
    task: Task
    recipe: Recipe
    reads: Specification
    record: dict[str, Any]

    def network(self, batch: int | None = None) -> keras.Model:
        """The trained network; ``batch`` fixes its batch dimension."""
        network = build(self.recipe, len(self.reads.map_channels), batch)
        network.load_weights(self.path / WEIGHTS)
        return network


def load_run(path: Path) -> Run:
    """Read a run's folder. Raises DataError where it is not a whole run."""
    try:
        record = json.loads((path / "run.json").read_text(encoding="utf-8"))
        specification = Specification.from_json(record["reads"])
        task: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["task"].items()}
        return Run(path, Task(**task), Recipe(**record["recipe"]), specification, record)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a whole training run ({error})") from error


def train(samples: Sequence[Sample], task: Task, recipe: Recipe, folds: int, out: Path, command: str) -> Run:
    """Cross-validate, choose the verdict rule on the pooled folds, fit on everything, write a run.

    ``folds`` 0 skips cross-validation; thresholds then stay at one half and no figure is given.
    Raises DataError where ``out`` exists.
    """
    if out.exists():
        raise DataError(f"{out}: exists already; name another folder or remove it")
    part = _open_part(out, samples, task, recipe, folds)
    reads = specification(task, recipe)
    clips = gather_views(samples, reads, RATE)
    figures: dict[str, Any] = {}
    if folds:
        maps = _out_of_fold(clips, task, recipe, folds, part)
        reads = choose_rule(clips, reads, maps)
        predictions = predict(clips, reads, maps)
        write_predictions(part / "predictions.csv", predictions, reads.labels)
        figures = _pooled_figures(predictions, reads, folds)
    network = fit(clips, task, recipe, "all: ")
    network.save_weights(part / WEIGHTS)
    np.savez_compressed(part / "calibration.npz", inputs=_calibration(clips, recipe.seed))
    record = _record(samples, task, recipe, reads, figures, command)
    write_json(part / "run.json", record)
    shutil.rmtree(part / "folds", ignore_errors=True)
    (part / "started.json").unlink()
    part.rename(out)
    return load_run(out)


def specification(task: Task, recipe: Recipe) -> Specification:
    """How networks of a task are read before a rule was chosen."""
    return Specification(
        labels=task.labels,
        negative=task.negative,
        size=recipe.size,
        channels=task.channels,
        beam=task.beam,
        map_channels=task.labels,
        temperature=1.0,
        verdict=VerdictRule(WINDOW, 0.5, 0.5, 0.5, HYSTERESIS, HOLD),
    )


def choose_rule(clips: Sequence[ClipViews], reads: Specification, maps: Sequence[Float]) -> Specification:
    """Temperature, threshold and abstain band from clips that the networks were not fitted on."""
    reads = dataclasses.replace(reads, temperature=_temperature(clips, reads, maps))
    read = [item for item in predict(clips, reads, maps) if item.p is not None]
    negative = reads.labels.index(reads.negative)
    score = np.array([1 - float(item.p[negative]) for item in read if item.p is not None])
    truth = np.array([item.sample.label != reads.negative for item in read])
    threshold = _balanced_threshold(score, truth)
    reach = np.quantile(np.abs(score - threshold), ABSTAIN_SHARE)
    rule = dataclasses.replace(
        reads.verdict,
        threshold=round(threshold, 4),
        normal_below=round(max(threshold - float(reach), 0.0), 4),
        abnormal_from=round(min(threshold + float(reach), 1.0), 4),
    )
    return dataclasses.replace(reads, verdict=rule)


def _balanced_threshold(score: Float, truth: NDArray[np.bool_]) -> float:
    """Midway between the scores around the cut with the best mean of sensitivity and specificity."""
    order = np.sort(np.unique(score))
    cuts = (order[1:] + order[:-1]) / 2 if order.size > 1 else np.array([0.5])
    balanced = [(score[truth] >= c).mean() + (score[~truth] < c).mean() for c in cuts]
    return float(cuts[int(np.argmax(balanced))])


def _temperature(clips: Sequence[ClipViews], reads: Specification, maps: Sequence[Float]) -> float:
    """The temperature with the smallest log loss over frames, each clip counting alike."""
    differences, signs, weights = [], [], []
    for clip, of in zip(clips, maps, strict=True):
        if not len(of):
            continue
        cells = cell_weights(clip.mask(reads.size), *of.shape[1:3])
        logits = np.stack([pool(m, cells) for m in of])
        true = reads.labels.index(clip.sample.label)
        others = np.delete(logits, true, axis=1)
        differences.append(np.logaddexp.reduce(others, axis=1) - logits[:, true])
        weights.append(np.full(len(of), 1 / len(of)))
        signs.append(clip.sample.label)
    gaps, weight = np.concatenate(differences), np.concatenate(weights)
    grid = np.geomspace(0.25, 8.0, 121)
    loss = [float((np.logaddexp(0, gaps / t) * weight).sum()) for t in grid]
    return round(float(grid[int(np.argmin(loss))]), 3)


def _out_of_fold(clips: list[ClipViews], task: Task, recipe: Recipe, folds: int, part: Path) -> list[Float]:
    """Class maps of every clip by a network that saw neither its patient nor its small source."""
    maps: list[Float] = [np.zeros((0, 1, 1, 1), np.float32)] * len(clips)
    (part / "folds").mkdir(exist_ok=True)
    held_out = patient_folds([clip.sample for clip in clips], folds, recipe.seed)
    for fold, held in enumerate(held_out):
        saved = part / "folds" / f"{fold}.npz"
        if not saved.exists():
            away = set(held)
            network = fit(
                [clip for i, clip in enumerate(clips) if i not in away],
                task,
                recipe,
                f"fold {fold + 1} of {folds}: ",
            )
            reading = NetworkMaps(network)
            found = {str(i): read_maps(clips[i], reading) for i in held}
            unsaved = saved.with_suffix(".part.npz")
            np.savez(unsaved, **found)  # type: ignore[arg-type]
            unsaved.rename(saved)
        with np.load(saved) as of:
            for i in held:
                maps[i] = of[str(i)]
    return maps


def _pooled_figures(predictions: Sequence[Prediction], reads: Specification, folds: int) -> dict[str, Any]:
    """Out-of-fold figures of everything, and of each source that holds both labels."""
    figures = {
        "how": f"{folds}-fold cross-validation by patient and small source, pooled; the threshold, "
        "temperature and abstain band were chosen on these same folds",
        "pooled": metrics(predictions, reads),
    }
    for source in sorted({item.sample.source for item in predictions}):
        of = [item for item in predictions if item.sample.source == source]
        if source and len({item.sample.label for item in of}) > 1 and len(of) >= 20:
            figures[source] = metrics(of, reads)
    return figures


def _calibration(clips: Sequence[ClipViews], seed: int) -> NDArray[np.uint8]:
    """Inputs spread over labels, sources and brightness: uint8 [n, size, size, channels]."""
    random = np.random.default_rng(seed)
    one_each = [clip.pixels[random.integers(len(clip.pixels))] for clip in clips if clip.pixels]
    strata = [f"{c.sample.label} {c.sample.source}" for c in clips if c.pixels]
    brightness = [float(pixels.mean()) for pixels in one_each]
    order = sorted(range(len(one_each)), key=lambda i: (strata[i], brightness[i]))
    step = max(len(order) / CALIBRATION_IMAGES, 1.0)
    chosen = [order[int(k * step)] for k in range(min(len(order), CALIBRATION_IMAGES))]
    return np.stack([one_each[i] for i in chosen])


def _record(
    samples: Sequence[Sample],
    task: Task,
    recipe: Recipe,
    reads: Specification,
    figures: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    licences = sorted({sample.license for sample in samples if sample.license})
    return {
        "command": command,
        "made": time.strftime("%Y-%m-%d"),
        "task": asdict(task),
        "recipe": asdict(recipe),
        "reads": asdict(reads),
        "backend": f"keras {keras.__version__} on {keras.backend.backend()}",
        "data": {
            "samples": len(samples),
            "labels": {x: sum(s.label == x for s in samples) for x in task.labels},
            "sources": {
                source: sum(s.source == source for s in samples)
                for source in sorted({s.source for s in samples})
            },
            "licences": licences,
            "patients": sorted({patient_digest(s.patient) for s in samples}),
        },
        "figures": figures,
    }


def _open_part(out: Path, samples: Sequence[Sample], task: Task, recipe: Recipe, folds: int) -> Path:
    """The folder that the run grows in; one left by the same recipe and data is taken up."""
    part = out.with_name(out.name + ".part")
    started = {
        "task": asdict(task),
        "recipe": asdict(recipe),
        "folds": folds,
        "samples": [sample.name for sample in samples],
    }
    text = json.dumps(started, sort_keys=True)
    if part.exists() and not (
        (part / "started.json").is_file() and (part / "started.json").read_text() == text
    ):
        raise DataError(f"{part}: left by another run; remove it or name another folder")
    part.mkdir(parents=True, exist_ok=True)
    (part / "started.json").write_text(text)
    return part
